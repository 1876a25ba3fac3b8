//! Scheduled messages, as the loop asks about them: those whose time has come become held ones.

use outboxd_core::KeyHash;
use outboxd_engine::{OutboxError, Term};
use sqlx::sqlite::SqliteRow;
use sqlx::{Connection, Row, SqliteConnection};
use tokio::time::timeout;

use crate::lead::lost;
use crate::outbox::SqliteOutbox;
use crate::session::Failure;

impl SqliteOutbox {
    /// Returns the key of each message that has become a held one.
    ///
    /// Runs on the lead session: what a call that was dropped half-way still does, it does before that session, or the next
    /// one that leads, counts held messages.
    pub(crate) async fn promote_scheduled(
        &self,
        term: Term,
        limit: i64,
    ) -> Result<Vec<KeyHash>, OutboxError> {
        const DOING: &str = "look for scheduled messages";
        let file = self.term_file()?;
        let Some(mut lent) = self.lead_session.lend_open(&self.config, DOING, &file).await? else {
            return Err(lost(DOING));
        };
        let outcome = timeout(lent.deadline(), promote(lent.connection(), term, limit)).await;
        lent.finish(DOING, outcome)
    }
}

async fn promote(connection: &mut SqliteConnection, term: Term, limit: i64) -> Result<Vec<KeyHash>, Failure> {
    // As a rule there is none, and looking takes no lock.
    if due(connection, 1).await?.is_empty() {
        return Ok(Vec::new());
    }
    // Dropped without a commit, on every error below, it rolls back.
    let mut transaction = connection.begin_with("begin immediate").await?;
    let leads = sqlx::query(include_str!("sql/start.sql"))
        .bind(term.epoch)
        .bind(term.nonce.to_string())
        .fetch_optional(&mut *transaction)
        .await?;
    if leads.is_none() {
        return Err(OutboxError::Fenced.into());
    }
    let mut keys = Vec::new();
    for row in due(&mut transaction, limit).await? {
        keys.extend(promote_one(&mut transaction, &row).await?);
    }
    transaction.commit().await?;
    Ok(keys)
}

async fn due(connection: &mut SqliteConnection, limit: i64) -> Result<Vec<SqliteRow>, Failure> {
    Ok(sqlx::query(include_str!("sql/scheduled_due.sql")).bind(limit).fetch_all(connection).await?)
}

/// The key that is busy from now on, if there is one.
async fn promote_one(connection: &mut SqliteConnection, row: &SqliteRow) -> Result<Option<KeyHash>, Failure> {
    let seq: i64 = row.try_get("seq")?;
    let id: String = row.try_get("id")?;
    let topic: String = row.try_get("topic")?;
    sqlx::query(include_str!("sql/scheduled_gone.sql")).bind(seq).execute(&mut *connection).await?;
    if let Some(who) = row.try_get::<Option<String>, _>("who")? {
        sqlx::query(include_str!("sql/scheduled_cancelled.sql"))
            .bind(id)
            .bind(seq)
            .bind(topic)
            .bind(row.try_get::<String, _>("correlation_id")?)
            .bind(who)
            .bind(row.try_get::<String, _>("why")?)
            .execute(connection)
            .await?;
        return Ok(None);
    }
    let key_hash: Option<i64> = row.try_get("key_hash")?;
    sqlx::query(include_str!("sql/scheduled_hold.sql"))
        .bind(seq)
        .bind(id)
        .bind(topic)
        .bind(key_hash)
        .bind(row.try_get::<bool, _>("is_behind")?)
        .execute(connection)
        .await?;
    Ok(key_hash.map(KeyHash::from_i64))
}
