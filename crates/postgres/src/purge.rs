//! Deleting what is dispatched and old, in small steps.

use outboxd_engine::{OutboxError, PurgeLimit, Purged};
use sqlx::Row;

use crate::outbox::PostgresOutbox;

impl PostgresOutbox {
    pub(crate) async fn purge_step(&self, limit: PurgeLimit) -> Result<Purged, OutboxError> {
        let rows = i64::from(limit.rows.max(1));
        let micros = |age: std::time::Duration| i64::try_from(age.as_micros()).unwrap_or(i64::MAX);
        // Where the last step ended: what it left (held, late) need not be walked over again.
        let from = self.memory().purged_to;
        let mut call = self.rest_session.call("purge").await?;
        let row = call
            .row(
                sqlx::query(self.sql.purge_messages.clone())
                    .bind(from)
                    .bind(rows)
                    .bind(micros(limit.keep_messages)),
            )
            .await?;
        let scanned: i64 = call.value(row.try_get("scanned"))?;
        let any_old: bool = call.value(row.try_get("any_old"))?;
        let last: Option<i64> = call.value(row.try_get("last"))?;
        let purged: i64 = call.value(row.try_get("purged"))?;
        let receipts = call
            .execute(
                sqlx::query(self.sql.purge_receipts.clone()).bind(rows).bind(micros(limit.keep_receipts)),
            )
            .await?;
        call.execute(
            sqlx::query(self.sql.purge_history.clone()).bind(rows).bind(micros(limit.keep_receipts)),
        )
        .await?;
        call.execute(
            sqlx::query(self.sql.purge_cancelled.clone()).bind(rows).bind(micros(limit.keep_messages)),
        )
        .await?;
        call.done();
        let more_messages = any_old && scanned == rows;
        // At the first window without an old message the walk is over; the next one starts at the beginning.
        self.memory().purged_to = last.filter(|_| more_messages).unwrap_or(0);
        Ok(Purged {
            messages: u64::try_from(purged).unwrap_or(0),
            receipts,
            more: more_messages || receipts == u64::from(limit.rows.max(1)),
        })
    }
}
