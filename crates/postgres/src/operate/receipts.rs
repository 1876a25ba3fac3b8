//! Where messages landed.

use std::ops::RangeInclusive;

use outboxd_core::Seq;
use outboxd_core::receipts::{RUN_SPAN, decode};
use outboxd_engine::{Landing, OutboxError, ReceiptRow, Receipts};
use sqlx::Row;

use super::PostgresOperator;
use crate::schema::render;
use crate::session::CallError;

impl Receipts for PostgresOperator {
    async fn landings(&self, span: RangeInclusive<Seq>) -> Result<Vec<Landing>, OutboxError> {
        let mut call = self.session.call("read receipts").await?;
        let sql = render(include_str!("../sql/operate_receipts.sql"), &self.config.schema);
        let statement =
            sqlx::query(sql).persistent(false).bind(span.start().0).bind(span.end().0).bind(RUN_SPAN);
        let mut found = Vec::new();
        for row in call.rows(statement).await? {
            let packed: &[u8] = call.value(row.try_get("receipts"))?;
            found.push(ReceiptRow {
                receipt: call.value(row.try_get("receipt"))?,
                replay: call.value(row.try_get("replay"))?,
                epoch: call.value(row.try_get("epoch"))?,
                relay: call.value(row.try_get("relay"))?,
                settled_at: call.value(row.try_get("settled_at"))?,
                entries: decode(packed).map_err(|error| call.failed(CallError::Client(error.to_string())))?,
            });
        }
        call.done();
        Ok(Landing::of_rows(found, &span))
    }
}
