//! Scheduled messages, as the loop asks about them: those whose time has come become held ones.

use std::collections::BTreeSet;

use outboxd_core::KeyHash;
use outboxd_engine::{OutboxError, Term};
use sqlx::Row;

use crate::held::Touched;
use crate::outbox::PostgresOutbox;

impl PostgresOutbox {
    /// Returns the key of each message that has become a held one.
    ///
    /// Runs on the lead session: what a call that was dropped half-way still does, it does before that session, or the next
    /// one that leads, counts held messages.
    pub(crate) async fn promote_scheduled(
        &self,
        term: Term,
        limit: i64,
    ) -> Result<Vec<KeyHash>, OutboxError> {
        let mut call = self.lead_session.call_if_open("look for scheduled messages").await?;
        let statement =
            sqlx::query(self.sql.scheduled_promote.clone()).bind(term.epoch).bind(term.nonce).bind(limit);
        let rows = call.rows(statement).await?;
        let Some(row) = rows.first() else {
            call.done();
            return Err(OutboxError::Fenced);
        };
        let keys: Vec<i64> = call.value(row.try_get("keys"))?;
        let behind: Vec<i64> = call.value(row.try_get("behind"))?;
        call.done();
        // What they wait for may have left already.
        self.memory().held.settled(Touched { keys: BTreeSet::from_iter(behind) });
        Ok(keys.into_iter().map(KeyHash::from_i64).collect())
    }
}
