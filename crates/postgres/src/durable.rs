//! What is read must be durable before it is published: a row written with `synchronous_commit = off` is visible before it
//! is on disk.

use std::time::Duration;

use outboxd_engine::{DurabilityMark, OutboxError};
use sqlx::Row;

use crate::outbox::PostgresOutbox;

/// Between two looks at the flush position.
const POLL: Duration = Duration::from_millis(1);

/// Looks before a synchronous commit of our own: others usually flush the log within a moment.
const LOOKS_MAX: u32 = 3;

impl PostgresOutbox {
    /// The session is the one that was opened with the term: after a crash that took the log back, the flush position would pass
    /// the mark again with other contents.
    pub(crate) async fn await_durable(&self, mark: DurabilityMark) -> Result<(), OutboxError> {
        let mut call = self.durable_session.call_if_open("wait until a page is durable").await?;
        self.same_incarnation(call.incarnation(), "wait until a page is durable")?;
        let mut looks = 0;
        loop {
            let row = call.row(sqlx::query(self.sql.durable_flushed.clone())).await?;
            let flushed: i64 = call.value(row.try_get("flushed"))?;
            if u64::try_from(flushed).is_ok_and(|flushed| flushed >= mark.0) {
                call.done();
                return Ok(());
            }
            looks += 1;
            if looks >= LOOKS_MAX {
                // Every further round forces again; the call's deadline ends it.
                call.execute(sqlx::query(self.sql.durable_force.clone())).await?;
            } else {
                tokio::time::sleep(POLL).await;
            }
        }
    }
}
