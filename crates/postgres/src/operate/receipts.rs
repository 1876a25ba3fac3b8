//! Where messages landed.

use outboxd_core::Seq;
use outboxd_core::receipts::{RUN_SPAN, decode};
use outboxd_engine::{Landing, OutboxError, ReceiptRow, Receipts, SPANS_MAX, spans};
use sqlx::Row;

use super::PostgresOperator;
use crate::schema::render;
use crate::session::CallError;

impl Receipts for PostgresOperator {
    async fn landings(&self, seqs: &[Seq]) -> Result<Vec<Landing>, OutboxError> {
        let sql = render(include_str!("../sql/operate_receipts.sql"), &self.config.schema);
        let mut landings = Vec::new();
        for spans in spans(seqs).chunks(SPANS_MAX) {
            let mut call = self.session.call("read receipts").await?;
            let firsts: Vec<i64> = spans.iter().map(|span| span.start().0).collect();
            let lasts: Vec<i64> = spans.iter().map(|span| span.end().0).collect();
            let from = seqs.partition_point(|seq| Some(&seq.0) < firsts.first());
            let to = seqs.partition_point(|seq| Some(&seq.0) <= lasts.last());
            let statement =
                sqlx::query(sql.clone()).persistent(false).bind(firsts).bind(lasts).bind(RUN_SPAN);
            let mut found = Vec::new();
            for row in call.rows(statement).await? {
                let packed: &[u8] = call.value(row.try_get("receipts"))?;
                found.push(ReceiptRow {
                    receipt: call.value(row.try_get("receipt"))?,
                    replay: call.value(row.try_get("replay"))?,
                    epoch: call.value(row.try_get("epoch"))?,
                    relay: call.value(row.try_get("relay"))?,
                    settled_at: call.value(row.try_get("settled_at"))?,
                    entries: decode(packed)
                        .map_err(|error| call.failed(CallError::Client(error.to_string())))?,
                });
            }
            call.done();
            landings.append(&mut Landing::of_rows(found, &seqs[from..to]));
        }
        Ok(landings)
    }
}
