//! Held messages: listing them, retrying and discarding them.

use outboxd_core::{HoldReason, HoldState, KeyHash, Seq};
use outboxd_engine::operate::shown_key_hash;
use outboxd_engine::{
    AuditedAction, HeldFilter, HeldId, HeldMessage, HoldFailure, OperateError, OutboxError,
};
use sqlx::postgres::PgRow;
use sqlx::types::Json;
use sqlx::{Row, SqlStr};
use time::OffsetDateTime;
use uuid::Uuid;

use super::PostgresOperator;
use crate::schema::render;
use crate::session::Statement;

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

    pub(super) async fn retry_held(&self, named: HeldId, action: &AuditedAction) -> Result<(), OperateError> {
        let mut call = self.session.call("retry held message").await?;
        let sql = render(include_str!("../sql/operate_held_retry.sql"), &self.config.schema);
        let row = call.row(acting(sql, named, action)).await?;
        let seqs = call.value(row.try_get("seqs"))?;
        let behind: Option<Uuid> = call.value(row.try_get("behind"))?;
        call.done();
        the_only(named.id, seqs)?;
        behind.map_or(Ok(()), |head| Err(OperateError::Behind { id: named.id, head }))
    }

    pub(super) async fn discard_held(
        &self,
        named: HeldId,
        action: &AuditedAction,
    ) -> Result<(), OperateError> {
        let mut call = self.session.call("discard held message").await?;
        let sql = render(include_str!("../sql/operate_held_discard.sql"), &self.config.schema);
        let row = call.row(acting(sql, named, action)).await?;
        let seqs = call.value(row.try_get("seqs"))?;
        call.done();
        the_only(named.id, seqs)
    }
}

fn acting<'a>(sql: SqlStr, named: HeldId, action: &'a AuditedAction) -> Statement<'a> {
    let seq = named.seq.map(|seq| seq.0);
    sqlx::query(sql).persistent(false).bind(named.id).bind(&action.who).bind(&action.why).bind(seq)
}

/// Nothing was done unless exactly one message was found.
fn the_only(id: Uuid, seqs: Vec<i64>) -> Result<(), OperateError> {
    match seqs.len() {
        0 => Err(OperateError::NotHeld(id)),
        1 => Ok(()),
        _ => Err(OperateError::SeveralHeld { id, seqs: seqs.into_iter().map(Seq).collect() }),
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
        dead_letter: row.try_get("dead_letter")?,
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
