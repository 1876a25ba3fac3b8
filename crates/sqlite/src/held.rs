//! Held messages, as the loop sees them: is there anything to do, and what may be published now.

use outboxd_core::KeyHash;
use outboxd_engine::{Due, HeldChange, HeldCount, HeldSignal, OutboxError, Release, ReleaseQuery};
use sqlx::{Connection, Row, SqliteConnection};
use tokio::time::timeout;

use crate::outbox::SqliteOutbox;
use crate::row::message;
use crate::session::Failure;

/// Due messages that are put behind what blocks them in one go: the application waits for the write lock meanwhile.
const DEMOTED_MAX: i64 = 1_000;

impl SqliteOutbox {
    pub(crate) async fn look_at_held(&self, topics_held: &[String]) -> Result<HeldSignal, OutboxError> {
        const DOING: &str = "look at held messages";
        let file = self.term_state().file;
        let mut lent = self.rest_session.lend(&self.config, DOING, file.as_ref()).await?;
        let outcome = timeout(lent.deadline(), signal(lent.connection(), topics_held)).await;
        lent.finish(DOING, outcome)
    }

    pub(crate) async fn read_due(&self, query: &ReleaseQuery, actions: i64) -> Result<Release, OutboxError> {
        const DOING: &str = "read held messages";
        let promoted = self.promote_scheduled(query.term, i64::from(query.limit.messages.max(1))).await?;
        let file = self.term_state().file;
        let mut lent = self.rest_session.lend(&self.config, DOING, file.as_ref()).await?;
        let outcome = timeout(lent.deadline(), due(lent.connection(), query, actions)).await;
        let (due, change) = lent.finish(DOING, outcome)?;
        Ok(Release { due, change, promoted })
    }
}

async fn signal(connection: &mut SqliteConnection, topics_held: &[String]) -> Result<HeldSignal, Failure> {
    let row = sqlx::query(include_str!("sql/held_signal.sql"))
        .bind(json_array(topics_held))
        .fetch_one(&mut *connection)
        .await?;
    let unblocked: Vec<i64> =
        sqlx::query_scalar(include_str!("sql/held_unblocked.sql")).fetch_all(connection).await?;
    Ok(HeldSignal {
        messages: u64::try_from(row.try_get::<i64, _>("messages")?).unwrap_or(0),
        due: row.try_get("due")?,
        unblocked: unblocked.into_iter().map(KeyHash::from_i64).collect(),
        actions: row.try_get("actions")?,
    })
}

async fn due(
    connection: &mut SqliteConnection,
    query: &ReleaseQuery,
    actions_known: i64,
) -> Result<(Vec<Due>, Option<HeldChange>), Failure> {
    let unblocked: Vec<i64> = query.unblocked.iter().map(|key_hash| key_hash.to_i64()).collect();
    // One transaction: the counts per key belong to the messages and to the number of actions.
    let mut transaction = connection.begin().await?;
    let actions: i64 =
        sqlx::query_scalar(include_str!("sql/held_actions.sql")).fetch_one(&mut *transaction).await?;
    let change = if actions > actions_known {
        Some(HeldChange { held: held_counts(&mut transaction).await?, actions })
    } else {
        None
    };
    let rows = sqlx::query(include_str!("sql/held_due.sql"))
        .bind(json_array(&query.topics_held))
        .bind(json_array(&unblocked))
        .bind(i64::from(query.limit.messages.max(1)))
        .bind(i64::try_from(query.limit.bytes).unwrap_or(i64::MAX))
        .fetch_all(&mut *transaction)
        .await?;
    transaction.commit().await?;
    if rows.len() < usize::try_from(query.limit.messages).unwrap_or(usize::MAX) {
        // What made the loop ask and did not come is blocked.
        demote(connection, &query.topics_held).await?;
    }
    let due = rows
        .iter()
        .map(|row| {
            Ok(Due {
                message: message(row)?,
                attempts: row.try_get("attempts")?,
                key_hash: row.try_get::<Option<i64>, _>("key_hash")?.map(KeyHash::from_i64),
            })
        })
        .collect::<Result<_, Failure>>()?;
    Ok((due, change))
}

/// Puts what is due and blocked behind what blocks it.
async fn demote(connection: &mut SqliteConnection, topics_held: &[String]) -> Result<(), Failure> {
    let blocked: Vec<i64> = sqlx::query_scalar(include_str!("sql/held_blocked.sql"))
        .bind(json_array(topics_held))
        .bind(DEMOTED_MAX)
        .fetch_all(&mut *connection)
        .await?;
    if blocked.is_empty() {
        return Ok(());
    }
    let mut transaction = connection.begin_with("begin immediate").await?;
    for seq in blocked {
        sqlx::query(include_str!("sql/held_demote.sql")).bind(seq).execute(&mut *transaction).await?;
    }
    transaction.commit().await?;
    Ok(())
}

/// Held messages per key.
pub(crate) async fn held_counts(connection: &mut SqliteConnection) -> Result<Vec<HeldCount>, Failure> {
    let rows = sqlx::query(include_str!("sql/held_counts.sql")).fetch_all(connection).await?;
    rows.iter()
        .map(|row| {
            let messages: i64 = row.try_get("messages")?;
            Ok(HeldCount {
                key_hash: KeyHash::from_i64(row.try_get("key_hash")?),
                messages: u32::try_from(messages).unwrap_or(u32::MAX),
            })
        })
        .collect()
}

fn json_array<T: serde::Serialize>(values: &[T]) -> String {
    serde_json::to_string(values).unwrap_or_else(|_| "[]".to_owned())
}
