//! What is undelivered, from the tables.

use std::time::Duration;

use outboxd_engine::{Backlog, OutboxError};
use sqlx::Row;

use crate::outbox::PostgresOutbox;

/// Messages are counted exactly up to so many.
const EXACT_MAX: i64 = 10_000;

impl PostgresOutbox {
    /// A leader asks on the session for such things; a standby has only the one that it waits for the lead on.
    pub(crate) async fn measure_backlog(&self) -> Result<Backlog, OutboxError> {
        let leads = self.memory().led.is_some();
        let session = if leads { &self.rest_session } else { &self.lead_session };
        let mut call = session.call("measure backlog").await?;
        let row = call.row(sqlx::query(self.sql.backlog.clone()).bind(EXACT_MAX)).await?;
        let messages: i64 = call.value(row.try_get("messages"))?;
        let oldest_age_us: Option<i64> = call.value(row.try_get("oldest_age_us"))?;
        let rows = call.rows(sqlx::query(self.sql.backlog_held.clone())).await?;
        let mut held = Vec::with_capacity(rows.len());
        for row in &rows {
            let messages: i64 = call.value(row.try_get("messages"))?;
            held.push((
                call.value(row.try_get("state"))?,
                call.value(row.try_get("reason"))?,
                u64::try_from(messages).unwrap_or(0),
            ));
        }
        call.done();
        let oldest_age_us = u64::try_from(oldest_age_us.unwrap_or(0)).unwrap_or(0);
        Ok(Backlog {
            messages: u64::try_from(messages).unwrap_or(0),
            oldest_age: Duration::from_micros(oldest_age_us),
            held,
        })
    }
}
