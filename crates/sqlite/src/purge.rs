//! Deleting what is dispatched and old, one small step at a time: a step holds the application's write lock.

use outboxd_engine::{OutboxError, PurgeLimit, Purged};
use sqlx::SqliteConnection;
use tokio::time::timeout;

use crate::outbox::SqliteOutbox;
use crate::session::Failure;

impl SqliteOutbox {
    pub(crate) async fn purge_step(&self, limit: PurgeLimit) -> Result<Purged, OutboxError> {
        const DOING: &str = "purge";
        let file = self.term_state().file;
        let mut lent = self.rest_session.lend(&self.config, DOING, file.as_ref()).await?;
        let outcome = timeout(lent.deadline(), purge(lent.connection(), limit)).await;
        lent.finish(DOING, outcome)
    }
}

async fn purge(connection: &mut SqliteConnection, limit: PurgeLimit) -> Result<Purged, Failure> {
    let messages = sqlx::query(include_str!("sql/purge_messages.sql"))
        .bind(limit.keep_messages.as_secs_f64())
        .bind(limit.rows)
        .execute(&mut *connection)
        .await?
        .rows_affected();
    if messages > 0 {
        sqlx::query(include_str!("sql/purge_edits.sql")).execute(&mut *connection).await?;
        sqlx::query(include_str!("sql/purge_hold_history.sql")).execute(&mut *connection).await?;
    }
    let receipts = sqlx::query(include_str!("sql/purge_receipts.sql"))
        .bind(limit.keep_receipts.as_secs_f64())
        .bind(limit.rows)
        .execute(&mut *connection)
        .await?
        .rows_affected();
    for statement in [include_str!("sql/purge_terms.sql"), include_str!("sql/purge_rewinds.sql")] {
        sqlx::query(statement)
            .bind(limit.keep_receipts.as_secs_f64())
            .bind(limit.rows)
            .execute(&mut *connection)
            .await?;
    }
    sqlx::query(include_str!("sql/purge_cancelled.sql"))
        .bind(limit.keep_messages.as_secs_f64())
        .bind(limit.rows)
        .execute(connection)
        .await?;
    let rows = u64::from(limit.rows);
    Ok(Purged { messages, receipts, more: messages >= rows || receipts >= rows })
}
