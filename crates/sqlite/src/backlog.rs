//! What has not been delivered.

use std::time::Duration;

use outboxd_engine::{Backlog, OutboxError};
use sqlx::{Connection, Row, SqliteConnection};
use tokio::time::timeout;

use crate::outbox::SqliteOutbox;
use crate::replay::state_of;
use crate::session::Failure;

/// Counted one by one up to here.
const EXACT_MAX: i64 = 10_000;

impl SqliteOutbox {
    pub(crate) async fn measure_backlog(&self) -> Result<Backlog, OutboxError> {
        const DOING: &str = "measure the backlog";
        let file = self.term_state().file;
        let mut lent = self.rest_session.lend(&self.config, DOING, file.as_ref()).await?;
        let outcome = timeout(lent.deadline(), backlog(lent.connection())).await;
        lent.finish(DOING, outcome)
    }
}

pub(crate) async fn backlog(connection: &mut SqliteConnection) -> Result<Backlog, Failure> {
    let mut transaction = connection.begin().await?;
    let row =
        sqlx::query(include_str!("sql/backlog.sql")).bind(EXACT_MAX).fetch_one(&mut *transaction).await?;
    let held = sqlx::query(include_str!("sql/backlog_held.sql")).fetch_all(&mut *transaction).await?;
    let replays = sqlx::query(include_str!("sql/backlog_replays.sql")).fetch_all(&mut *transaction).await?;
    transaction.commit().await?;
    let held = held
        .iter()
        .map(|row| Ok((row.try_get("state")?, row.try_get("reason")?, count(row.try_get("messages")?))))
        .collect::<Result<_, sqlx::Error>>()?;
    Ok(Backlog {
        messages: count(row.try_get("messages")?),
        oldest_age: Duration::try_from_secs_f64(row.try_get("oldest_seconds")?).unwrap_or(Duration::ZERO),
        scheduled: count(row.try_get("scheduled")?),
        held,
        replays: replays
            .iter()
            .map(|row| Ok((state_of(row)?, count(row.try_get("replays")?))))
            .collect::<Result<_, sqlx::Error>>()?,
    })
}

fn count(stored: i64) -> u64 {
    u64::try_from(stored).unwrap_or(0)
}
