//! Where messages landed.

use std::ops::RangeInclusive;

use outboxd_core::Seq;
use outboxd_core::receipts::{RUN_SPAN, decode};
use outboxd_engine::{Landing, OutboxError, ReceiptRow, Receipts, spans};
use sqlx::{Row, SqliteConnection};
use tokio::time::timeout;

use crate::operator::SqliteOperator;
use crate::row::timestamp;
use crate::session::Failure;

impl Receipts for SqliteOperator {
    async fn landings(&self, seqs: &[Seq]) -> Result<Vec<Landing>, OutboxError> {
        const DOING: &str = "read receipts";
        let mut landings = Vec::new();
        for span in spans(seqs) {
            let mut lent = self.session.lend(&self.config, DOING, None).await?;
            let outcome = timeout(lent.deadline(), rows(lent.connection(), &span)).await;
            let from = seqs.partition_point(|seq| seq < span.start());
            let to = seqs.partition_point(|seq| seq <= span.end());
            landings.append(&mut Landing::of_rows(lent.finish(DOING, outcome)?, &seqs[from..to]));
        }
        Ok(landings)
    }
}

async fn rows(
    connection: &mut SqliteConnection,
    span: &RangeInclusive<Seq>,
) -> Result<Vec<ReceiptRow>, Failure> {
    let statement = sqlx::query(include_str!("sql/receipts.sql"));
    let found =
        statement.bind(span.start().0).bind(span.end().0).bind(RUN_SPAN).fetch_all(connection).await?;
    let mut rows = Vec::new();
    for row in &found {
        let entries = decode(row.try_get("receipts")?)
            .map_err(|error| OutboxError::unavailable("read receipts", error))?;
        let settled_at = timestamp(row, "settled_at")?
            .ok_or_else(|| sqlx::Error::ColumnNotFound("settled_at".to_owned()))?;
        rows.push(ReceiptRow {
            receipt: row.try_get("receipt")?,
            replay: row.try_get("replay")?,
            epoch: row.try_get("epoch")?,
            relay: row.try_get("relay")?,
            settled_at,
            entries,
        });
    }
    Ok(rows)
}
