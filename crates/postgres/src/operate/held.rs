//! Held messages: listing them, retrying and discarding them.

use outboxd_core::{HoldReason, HoldState, KeyHash, Seq};
use outboxd_engine::operate::shown_key_hash;
use outboxd_engine::{AuditedAction, HeldFilter, HeldMessage, HoldFailure, OperateError, OutboxError};
use sqlx::Row;
use sqlx::postgres::PgRow;
use sqlx::types::Json;
use time::OffsetDateTime;
use uuid::Uuid;

use super::PostgresOperator;
use crate::schema::render;

impl PostgresOperator {
    pub(super) async fn list_held(&self, filter: &HeldFilter) -> Result<Vec<HeldMessage>, OutboxError> {
        let mut call = self.session.call("list held messages").await?;
        let sql = render(include_str!("../sql/operate_held_list.sql"), &self.config.schema);
        let rows = call
            .rows(
                sqlx::query(sql)
                    .persistent(false)
                    .bind(filter.id)
                    .bind(filter.topic.as_deref())
                    .bind(filter.state.map(HoldState::as_str))
                    .bind(filter.reason.map(HoldReason::as_str))
                    .bind((filter.limit > 0).then_some(i64::from(filter.limit))),
            )
            .await?;
        let messages = call.value(rows.iter().map(held_message).collect())?;
        call.done();
        Ok(messages)
    }

    pub(super) async fn retry_held(&self, id: Uuid, action: &AuditedAction) -> Result<(), OperateError> {
        let mut call = self.session.call("retry held message").await?;
        let sql = render(include_str!("../sql/operate_held_retry.sql"), &self.config.schema);
        let row =
            call.row(sqlx::query(sql).persistent(false).bind(id).bind(&action.who).bind(&action.why)).await?;
        let is_held: bool = call.value(row.try_get("is_held"))?;
        let behind: Option<Uuid> = call.value(row.try_get("behind"))?;
        call.done();
        match (is_held, behind) {
            (false, _) => Err(OperateError::NotHeld(id)),
            (true, Some(head)) => Err(OperateError::Behind { id, head }),
            (true, None) => Ok(()),
        }
    }

    pub(super) async fn discard_held(&self, id: Uuid, action: &AuditedAction) -> Result<(), OperateError> {
        let mut call = self.session.call("discard held message").await?;
        let sql = render(include_str!("../sql/operate_held_discard.sql"), &self.config.schema);
        let row =
            call.row(sqlx::query(sql).persistent(false).bind(id).bind(&action.who).bind(&action.why)).await?;
        let was_held: bool = call.value(row.try_get("was_held"))?;
        call.done();
        if was_held { Ok(()) } else { Err(OperateError::NotHeld(id)) }
    }
}

/// A failure as `settle.sql` stores it.
#[derive(serde::Deserialize)]
struct StoredFailure {
    #[serde(with = "time::serde::rfc3339")]
    at: OffsetDateTime,
    error: String,
}

fn held_message(row: &PgRow) -> Result<HeldMessage, sqlx::Error> {
    let Json(failures): Json<Vec<StoredFailure>> = row.try_get("failures")?;
    let key_hash: Option<i64> = row.try_get("key_hash")?;
    let attempts: i32 = row.try_get("attempts")?;
    let followers: i64 = row.try_get("followers")?;
    let payload_bytes: Option<i32> = row.try_get("payload_bytes")?;
    Ok(HeldMessage {
        seq: Seq(row.try_get("seq")?),
        id: row.try_get("id")?,
        correlation_id: row.try_get("correlation_id")?,
        topic: row.try_get("topic")?,
        key_hash: shown_key_hash(key_hash.map(KeyHash::from_i64)),
        state: word(row, "state", HoldState::parse)?,
        reason: word(row, "reason", HoldReason::parse)?,
        error: row.try_get("error")?,
        attempts: u32::try_from(attempts).unwrap_or(0),
        failures: failures.into_iter().map(|StoredFailure { at, error }| HoldFailure { at, error }).collect(),
        created_at: row.try_get("created_at")?,
        held_at: row.try_get("held_at")?,
        due_at: row.try_get("due_at")?,
        followers: u64::try_from(followers).unwrap_or(0),
        payload_bytes: payload_bytes.and_then(|bytes| u64::try_from(bytes).ok()),
    })
}

/// A word of a later version.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a word that this version knows")]
struct UnknownWord(String);

fn word<T>(row: &PgRow, column: &str, parse: impl Fn(&str) -> Option<T>) -> Result<T, sqlx::Error> {
    let stored: &str = row.try_get(column)?;
    parse(stored).ok_or_else(|| sqlx::Error::ColumnDecode {
        index: column.to_owned(),
        source: Box::new(UnknownWord(stored.to_owned())),
    })
}
