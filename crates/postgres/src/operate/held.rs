//! Held messages: listing them, retrying and discarding them, one or many.

use outboxd_core::{HoldReason, HoldState, KeyHash, Seq};
use std::time::Duration;

use outboxd_engine::operate::{ShownEdit, shown_key_hash};
use outboxd_engine::{
    AuditedAction, BulkAction, HeldFilter, HeldId, HeldMatch, HeldMessage, HeldSpan, HeldStep, HoldFailure,
    OperateError, OutboxError,
};
use sqlx::postgres::PgRow;
use sqlx::types::Json;
use sqlx::{Row, SqlStr};
use time::OffsetDateTime;
use uuid::Uuid;

use super::PostgresOperator;
use crate::schema::render;
use crate::session::{CallError, Statement};

/// How often a step of a bulk action gives way to the relay, which has locked one of its messages.
const GIVES_WAY_MAX: u32 = 20;

impl PostgresOperator {
    pub(super) async fn list_held(&self, filter: &HeldFilter) -> Result<Vec<HeldMessage>, OutboxError> {
        let mut call = self.session.call("list held messages").await?;
        let sql = render(include_str!("../sql/operate_held_list.sql"), &self.config.schema);
        let rows = call
            .rows(filtered(sql, filter).bind((filter.limit > 0).then_some(i64::from(filter.limit))))
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

impl PostgresOperator {
    pub(super) async fn match_held(&self, filter: &HeldFilter) -> Result<HeldMatch, OutboxError> {
        let mut call = self.session.call("count held messages").await?;
        let sql = render(include_str!("../sql/operate_held_match.sql"), &self.config.schema);
        let limit = (filter.limit > 0).then_some(i64::from(filter.limit));
        let row = call.row(filtered(sql, filter).bind(limit)).await?;
        let messages: i64 = call.value(row.try_get("messages"))?;
        let behind: i64 = call.value(row.try_get("behind"))?;
        let last: Option<i64> = call.value(row.try_get("last"))?;
        call.done();
        let count = |number| u64::try_from(number).unwrap_or(0);
        Ok(HeldMatch { messages: count(messages), behind: count(behind), last: last.map(Seq) })
    }

    pub(super) async fn act_on_some(
        &self,
        kind: BulkAction,
        filter: &HeldFilter,
        span: HeldSpan,
        messages: u32,
        action: &AuditedAction,
    ) -> Result<HeldStep, OutboxError> {
        for _ in 0..GIVES_WAY_MAX {
            match self.step(kind, filter, span, messages, action).await {
                Err(error) if is_locked(&error) => {}
                answer => return answer,
            }
        }
        self.step(kind, filter, span, messages, action).await
    }

    async fn step(
        &self,
        kind: BulkAction,
        filter: &HeldFilter,
        span: HeldSpan,
        messages: u32,
        action: &AuditedAction,
    ) -> Result<HeldStep, OutboxError> {
        let (doing, sql) = match kind {
            BulkAction::Retry => ("retry held messages", include_str!("../sql/operate_held_retry_some.sql")),
            BulkAction::Discard => {
                ("discard held messages", include_str!("../sql/operate_held_discard_some.sql"))
            }
        };
        let mut call = self.session.call(doing).await?;
        let statement = filtered(render(sql, &self.config.schema), filter)
            .bind(span.above.0)
            .bind(span.up_to.0)
            .bind(i64::from(messages))
            .bind(&action.who)
            .bind(&action.why);
        let row = call.row(statement).await?;
        let count = |column: &str| Ok(u64::try_from(row.try_get::<i64, _>(column)?).unwrap_or(0));
        let found = call.value(count("found"))?;
        let done = call.value(count("done"))?;
        let reached = call.value(row.try_get::<Option<i64>, _>("reached"))?.map(Seq);
        call.done();
        Ok(HeldStep { found, done, reached })
    }
}

/// Whether the relay has locked what this statement wanted.
fn is_locked(error: &OutboxError) -> bool {
    let OutboxError::Unavailable { source, .. } = error else { return false };
    let code = source.downcast_ref::<CallError>().and_then(CallError::code);
    matches!(code, Some("55P03" | "40P01"))
}

/// A statement whose first seven values are the filter.
fn filtered<'a>(sql: SqlStr, filter: &HeldFilter) -> Statement<'a> {
    sqlx::query(sql)
        .persistent(false)
        .bind(filter.id)
        .bind(filter.topic.as_ref().map(|topic| topic.like()))
        .bind(filter.state.map(HoldState::as_str))
        .bind(filter.reason.map(HoldReason::as_str))
        .bind(filter.key_hash.map(KeyHash::to_i64))
        .bind(filter.older_than.map(micros))
        .bind(filter.younger_than.map(micros))
}

pub(super) fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

pub(super) fn acting<'a>(sql: SqlStr, named: HeldId, action: &'a AuditedAction) -> Statement<'a> {
    let seq = named.seq.map(|seq| seq.0);
    sqlx::query(sql).persistent(false).bind(named.id).bind(&action.who).bind(&action.why).bind(seq)
}

/// Nothing was done unless exactly one message was found.
pub(super) fn the_only(id: Uuid, seqs: Vec<i64>) -> Result<(), OperateError> {
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
    let behind = match row.try_get::<Option<i64>, _>("head_seq")? {
        Some(seq) => Some(HeldId { id: row.try_get("head_id")?, seq: Some(Seq(seq)) }),
        None => None,
    };
    let edit = match row.try_get::<Option<Vec<String>>, _>("edited")? {
        Some(edited) => Some(ShownEdit { edited, edited_at: row.try_get("edited_at")? }),
        None => None,
    };
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
        behind,
        edit,
    })
}

/// A word of a later version.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a word that this version knows")]
struct UnknownWord(String);

pub(crate) fn word<T>(
    row: &PgRow,
    column: &str,
    parse: impl Fn(&str) -> Option<T>,
) -> Result<T, sqlx::Error> {
    let stored: &str = row.try_get(column)?;
    parse(stored).ok_or_else(|| sqlx::Error::ColumnDecode {
        index: column.to_owned(),
        source: Box::new(UnknownWord(stored.to_owned())),
    })
}
