//! What operators ask of a SQLite outbox: [`SqliteOperator`].

use std::time::Duration;

use outboxd_core::{Cursor, HoldReason, HoldState, KeyHash, Seq, Snapshot};
use outboxd_engine::operate::{EditDone, EditRefusal, ShownEdit, shown_key_hash};
use outboxd_engine::{
    AuditFilter, AuditLine, AuditedAction, BulkAction, Finding, HeldEdit, HeldFilter, HeldId, HeldMatch,
    HeldMessage, HeldSpan, HeldStep, HoldFailure, LeaderStatus, Operate, OperateError, OutboxError,
    OutboxStatus, ScheduledFilter, ScheduledMessage,
};
use sqlx::sqlite::SqliteRow;
use sqlx::{Connection, Row, SqliteConnection};
use tokio::time::timeout;
use uuid::Uuid;

use crate::backlog::backlog;
use crate::config::SqliteConfig;
use crate::lead::refused;
use crate::migrate::version_of;
use crate::row::timestamp;
use crate::session::{Failure, Session};

/// An operator's view of an outbox in a SQLite file.
#[derive(Debug)]
pub struct SqliteOperator {
    pub(crate) config: SqliteConfig,
    pub(crate) session: Session,
}

/// What an operator may do to a held message.
#[derive(Clone, Copy, Debug)]
enum Action {
    Retry,
    Discard,
}

/// A held message, as far as an action needs it.
struct HeldRow {
    seq: i64,
    topic: String,
    key_hash: Option<i64>,
    reason: String,
    correlation_id: Vec<u8>,
    head: Uuid,
    head_seq: i64,
}

/// Why an action was not taken; the transaction is rolled back.
pub(crate) enum NotDone {
    Failure(Failure),
    NotHeld,
    Several(Vec<Seq>),
    Behind(Uuid),
    Edit(EditRefusal),
}

impl<E: Into<Failure>> From<E> for NotDone {
    fn from(error: E) -> Self {
        Self::Failure(error.into())
    }
}

/// What was found is not a failure of the session: it is carried out of the call as a value.
pub(crate) fn carried<T>(id: Uuid, outcome: Result<T, NotDone>) -> Result<Result<T, OperateError>, Failure> {
    match outcome {
        Ok(done) => Ok(Ok(done)),
        Err(NotDone::Several(seqs)) => Ok(Err(OperateError::SeveralHeld { id, seqs })),
        Err(NotDone::NotHeld) => Ok(Err(OperateError::NotHeld(id))),
        Err(NotDone::Behind(head)) => Ok(Err(OperateError::Behind { id, head })),
        Err(NotDone::Edit(refusal)) => Ok(Err(OperateError::Edit { id, refusal })),
        Err(NotDone::Failure(failure)) => Err(failure),
    }
}

impl SqliteOperator {
    /// An operator of the outbox in the file of the configuration. Nothing is opened yet.
    #[must_use]
    pub fn new(config: SqliteConfig) -> Self {
        Self { config, session: Session::default() }
    }

    async fn act(
        &self,
        doing: &'static str,
        named: HeldId,
        action: &AuditedAction,
        kind: Action,
    ) -> Result<(), OperateError> {
        let mut lent = self.session.lend(&self.config, doing, None).await?;
        let acting = async { carried(named.id, act(lent.connection(), named, action, kind).await) };
        let outcome = timeout(self.config.deadline, acting).await;
        lent.finish(doing, outcome)?
    }
}

impl Operate for SqliteOperator {
    async fn status(&self) -> Result<OutboxStatus, OutboxError> {
        const DOING: &str = "read the status";
        let mut lent = self.session.lend(&self.config, DOING, None).await?;
        let outcome = timeout(lent.deadline(), status(lent.connection())).await;
        lent.finish(DOING, outcome)
    }

    async fn check(&self) -> Result<Vec<Finding>, OutboxError> {
        self.findings().await
    }

    async fn topics(&self) -> Result<Vec<String>, OutboxError> {
        const DOING: &str = "list topics";
        let mut lent = self.session.lend(&self.config, DOING, None).await?;
        let outcome = timeout(lent.deadline(), topics(lent.connection())).await;
        lent.finish(DOING, outcome)
    }

    async fn max_message_bytes(&self) -> Result<usize, OutboxError> {
        const DOING: &str = "read the size limit";
        let mut lent = self.session.lend(&self.config, DOING, None).await?;
        let outcome = timeout(lent.deadline(), max_message_bytes(lent.connection())).await;
        lent.finish(DOING, outcome)
    }

    async fn held_match(&self, filter: &HeldFilter) -> Result<HeldMatch, OutboxError> {
        const DOING: &str = "count held messages";
        let mut lent = self.session.lend(&self.config, DOING, None).await?;
        let outcome = timeout(lent.deadline(), held_match(lent.connection(), filter)).await;
        lent.finish(DOING, outcome)
    }

    async fn held_act(
        &self,
        kind: BulkAction,
        filter: &HeldFilter,
        span: HeldSpan,
        messages: u32,
        action: &AuditedAction,
    ) -> Result<HeldStep, OutboxError> {
        const DOING: &str = "act on held messages";
        let mut lent = self.session.lend(&self.config, DOING, None).await?;
        let acting = act_on_some(lent.connection(), kind, filter, span, messages, action);
        let outcome = timeout(self.config.deadline, acting).await;
        lent.finish(DOING, outcome)
    }

    async fn held_edit(
        &self,
        named: HeldId,
        edit: &HeldEdit,
        action: &AuditedAction,
    ) -> Result<EditDone, OperateError> {
        self.edit(named, edit, action).await
    }

    async fn held_audit(&self, filter: &AuditFilter) -> Result<Vec<AuditLine>, OutboxError> {
        const DOING: &str = "read the audit";
        let mut lent = self.session.lend(&self.config, DOING, None).await?;
        let outcome = timeout(lent.deadline(), audit(lent.connection(), filter)).await;
        lent.finish(DOING, outcome)
    }

    async fn held_list(&self, filter: &HeldFilter) -> Result<Vec<HeldMessage>, OutboxError> {
        const DOING: &str = "list held messages";
        let mut lent = self.session.lend(&self.config, DOING, None).await?;
        let outcome = timeout(lent.deadline(), held_list(lent.connection(), filter)).await;
        lent.finish(DOING, outcome)
    }

    async fn held_retry(
        &self,
        named: impl Into<HeldId> + Send,
        action: &AuditedAction,
    ) -> Result<(), OperateError> {
        self.act("retry a held message", named.into(), action, Action::Retry).await
    }

    async fn held_discard(
        &self,
        named: impl Into<HeldId> + Send,
        action: &AuditedAction,
    ) -> Result<(), OperateError> {
        self.act("discard a held message", named.into(), action, Action::Discard).await
    }

    async fn scheduled_list(&self, filter: &ScheduledFilter) -> Result<Vec<ScheduledMessage>, OutboxError> {
        const DOING: &str = "list scheduled messages";
        let mut lent = self.session.lend(&self.config, DOING, None).await?;
        let outcome = timeout(lent.deadline(), scheduled_list(lent.connection(), filter)).await;
        lent.finish(DOING, outcome)
    }

    async fn scheduled_cancel(&self, id: Uuid, action: &AuditedAction) -> Result<(), OperateError> {
        const DOING: &str = "cancel a scheduled message";
        let mut lent = self.session.lend(&self.config, DOING, None).await?;
        let outcome = timeout(lent.deadline(), scheduled_cancel(lent.connection(), id, action)).await;
        if lent.finish(DOING, outcome)? { Ok(()) } else { Err(OperateError::NotScheduled(id)) }
    }

    fn takeover_after(&self) -> Duration {
        self.config.lease
    }
}

async fn status(connection: &mut SqliteConnection) -> Result<OutboxStatus, Failure> {
    let Some(schema_version) = version_of(connection).await? else {
        return Err(refused("the database has no outbox".to_owned(), "run `outboxd migrate`"));
    };
    let row = sqlx::query(include_str!("sql/status.sql")).fetch_one(&mut *connection).await?;
    let backlog = backlog(connection).await?;
    let cursor = Cursor { high: Seq(row.try_get("high")?), seen: Snapshot::none(), catch_up: None };
    let version: String = row.try_get("sqlite_version")?;
    let status = OutboxStatus {
        database: format!("sqlite {version}"),
        schema_version,
        leader: LeaderStatus {
            relay: row.try_get("relay")?,
            epoch: row.try_get("epoch")?,
            led_at: timestamp(&row, "led_at")?,
            alive: row.try_get("alive")?,
        },
        cursor: cursor.to_string(),
        settled_at: timestamp(&row, "settled_at")?,
        kafka_cluster: row.try_get("kafka_cluster")?,
        backlog_messages: 0,
        oldest_age_seconds: 0.0,
        scheduled_messages: 0,
        held: Vec::new(),
        replays: Vec::new(),
    };
    Ok(status.with_backlog(backlog))
}

async fn topics(connection: &mut SqliteConnection) -> Result<Vec<String>, Failure> {
    let topics = sqlx::query_scalar(include_str!("sql/topics.sql")).fetch_all(connection).await?;
    Ok(topics)
}

async fn max_message_bytes(connection: &mut SqliteConnection) -> Result<usize, Failure> {
    let bytes: i64 = sqlx::query_scalar(include_str!("sql/limit.sql")).fetch_one(connection).await?;
    Ok(usize::try_from(bytes).unwrap_or(usize::MAX))
}

async fn held_list(
    connection: &mut SqliteConnection,
    filter: &HeldFilter,
) -> Result<Vec<HeldMessage>, Failure> {
    let rows = filtered(include_str!("sql/held_list.sql"), filter)
        .bind(limit(filter.limit))
        .fetch_all(connection)
        .await?;
    rows.iter().map(|row| held_message(row).map_err(Failure::Database)).collect()
}

type Statement<'a> = sqlx::query::Query<'a, sqlx::Sqlite, sqlx::sqlite::SqliteArguments>;

/// A statement whose first seven values are the filter.
fn filtered<'a>(sql: &'static str, filter: &HeldFilter) -> Statement<'a> {
    sqlx::query(sql)
        .bind(filter.id.map(|id| id.to_string()))
        .bind(filter.topic.as_ref().map(|topic| topic.as_str().to_owned()))
        .bind(filter.state.map(HoldState::as_str))
        .bind(filter.reason.map(HoldReason::as_str))
        .bind(filter.key_hash.map(KeyHash::to_i64))
        .bind(filter.older_than.map(|age| age.as_secs_f64()))
        .bind(filter.younger_than.map(|age| age.as_secs_f64()))
}

pub(crate) fn limit(messages: u32) -> i64 {
    if messages == 0 { -1 } else { i64::from(messages) }
}

async fn held_match(connection: &mut SqliteConnection, filter: &HeldFilter) -> Result<HeldMatch, Failure> {
    let statement = filtered(include_str!("sql/held_match.sql"), filter).bind(limit(filter.limit));
    let row = statement.fetch_one(connection).await?;
    let count = |column| row.try_get::<i64, _>(column).map(|number| u64::try_from(number).unwrap_or(0));
    let last = row.try_get::<Option<i64>, _>("last")?.map(Seq);
    Ok(HeldMatch { messages: count("messages")?, behind: count("behind")?, last })
}

/// One step of a bulk action, in one transaction.
async fn act_on_some(
    connection: &mut SqliteConnection,
    kind: BulkAction,
    filter: &HeldFilter,
    span: HeldSpan,
    messages: u32,
    action: &AuditedAction,
) -> Result<HeldStep, Failure> {
    let sql = match kind {
        BulkAction::Retry => include_str!("sql/held_oldest.sql"),
        BulkAction::Discard => include_str!("sql/held_newest.sql"),
    };
    let mut transaction = connection.begin_with("begin immediate").await?;
    let rows = filtered(sql, filter)
        .bind(span.above.0)
        .bind(span.up_to.0)
        .bind(messages)
        .fetch_all(&mut *transaction)
        .await?;
    let mut step = HeldStep { found: rows.len() as u64, ..HeldStep::default() };
    for row in &rows {
        let (seq, head): (i64, i64) = (row.try_get("seq")?, row.try_get("head_seq")?);
        step.reached = Some(Seq(seq));
        let key_hash: Option<i64> = row.try_get("key_hash")?;
        match kind {
            BulkAction::Retry if seq != head || row.try_get("is_due")? => continue,
            BulkAction::Retry => retry(&mut transaction, seq).await?,
            BulkAction::Discard => discard(&mut transaction, seq, key_hash).await?,
        }
        step.done += 1;
        let correlation_id: &[u8] = row.try_get("correlation_id")?;
        let audited = Audited {
            kind: kind.as_str(),
            id: row.try_get("id")?,
            seq,
            topic: row.try_get("topic")?,
            reason: row.try_get("reason")?,
            correlation_id: String::from_utf8_lossy(correlation_id).into_owned(),
            details: None,
        };
        audited.write(&mut transaction, action).await?;
    }
    transaction.commit().await?;
    Ok(step)
}

async fn retry(connection: &mut SqliteConnection, seq: i64) -> Result<(), sqlx::Error> {
    sqlx::query(include_str!("sql/held_retry.sql")).bind(seq).execute(connection).await.map(drop)
}

async fn discard(
    connection: &mut SqliteConnection,
    seq: i64,
    key_hash: Option<i64>,
) -> Result<(), sqlx::Error> {
    sqlx::query(include_str!("sql/held_discard.sql")).bind(seq).execute(&mut *connection).await?;
    sqlx::query(include_str!("sql/held_promote.sql")).bind(key_hash).execute(connection).await.map(drop)
}

/// A line of the audit, to be written.
pub(crate) struct Audited {
    pub(crate) kind: &'static str,
    pub(crate) id: String,
    pub(crate) seq: i64,
    pub(crate) topic: String,
    pub(crate) reason: String,
    pub(crate) correlation_id: String,
    pub(crate) details: Option<String>,
}

impl Audited {
    pub(crate) async fn write(
        self,
        connection: &mut SqliteConnection,
        action: &AuditedAction,
    ) -> Result<(), sqlx::Error> {
        sqlx::query(include_str!("sql/held_audit.sql"))
            .bind(self.kind)
            .bind(self.id)
            .bind(self.seq)
            .bind(self.topic)
            .bind(self.reason)
            .bind(self.correlation_id)
            .bind(&action.who)
            .bind(&action.why)
            .bind(self.details)
            .execute(connection)
            .await
            .map(drop)
    }
}

async fn audit(connection: &mut SqliteConnection, filter: &AuditFilter) -> Result<Vec<AuditLine>, Failure> {
    let rows = sqlx::query(include_str!("sql/audit_list.sql"))
        .bind(filter.id.map(|id| id.to_string()))
        .bind(filter.topic.as_ref().map(|topic| topic.as_str().to_owned()))
        .bind(filter.kind.as_deref())
        .bind(filter.who.as_deref())
        .bind(filter.older_than.map(|age| age.as_secs_f64()))
        .bind(filter.younger_than.map(|age| age.as_secs_f64()))
        .bind(limit(filter.limit))
        .fetch_all(connection)
        .await?;
    rows.iter().map(|row| audit_line(row).map_err(Failure::Database)).collect()
}

fn audit_line(row: &SqliteRow) -> Result<AuditLine, sqlx::Error> {
    let id: String = row.try_get("id")?;
    let details: Option<String> = row.try_get("details")?;
    let details = details.map(|json| serde_json::from_str(&json)).transpose();
    Ok(AuditLine {
        at: required(row, "at")?,
        kind: row.try_get("kind")?,
        id: id.parse().map_err(|error| undecodable("id", error))?,
        seq: Seq(row.try_get("seq")?),
        topic: row.try_get("topic")?,
        reason_held: row.try_get("reason_held")?,
        correlation_id: row.try_get("correlation_id")?,
        who: row.try_get("who")?,
        why: row.try_get("why")?,
        details: details.map_err(|error| undecodable("details", error))?,
    })
}

fn held_message(row: &SqliteRow) -> Result<HeldMessage, sqlx::Error> {
    let state: String = row.try_get("state")?;
    let reason: String = row.try_get("reason")?;
    let failures: String = row.try_get("failures")?;
    let correlation_id: &[u8] = row.try_get("correlation_id")?;
    let id: String = row.try_get("id")?;
    let behind = match row.try_get::<Option<i64>, _>("head_seq")? {
        Some(seq) => {
            let head: String = row.try_get("head_id")?;
            let id = head.parse().map_err(|error| undecodable("head_id", error))?;
            Some(HeldId { id, seq: Some(Seq(seq)) })
        }
        None => None,
    };
    let edit = match row.try_get::<Option<String>, _>("edited")? {
        Some(edited) => Some(ShownEdit {
            edited: serde_json::from_str(&edited).map_err(|error| undecodable("edited", error))?,
            edited_at: required(row, "edited_at")?,
        }),
        None => None,
    };
    Ok(HeldMessage {
        seq: Seq(row.try_get("seq")?),
        id: id.parse().map_err(|error| undecodable("id", error))?,
        correlation_id: String::from_utf8_lossy(correlation_id).into_owned(),
        topic: row.try_get("topic")?,
        key_hash: shown_key_hash(row.try_get::<Option<i64>, _>("key_hash")?.map(KeyHash::from_i64)),
        state: HoldState::parse(&state).ok_or_else(|| undecodable("state", UnknownWord(state)))?,
        reason: HoldReason::parse(&reason).ok_or_else(|| undecodable("reason", UnknownWord(reason)))?,
        error: row.try_get("error")?,
        attempts: row.try_get("attempts")?,
        failures: parse_failures(&failures).map_err(|error| undecodable("failures", error))?,
        dead_letter: row.try_get("dead_letter")?,
        created_at: required(row, "created_at")?,
        held_at: required(row, "held_at")?,
        due_at: timestamp(row, "due_at")?,
        followers: u64::try_from(row.try_get::<i64, _>("followers")?).unwrap_or(0),
        payload_bytes: row
            .try_get::<Option<i64>, _>("payload_bytes")?
            .and_then(|bytes| u64::try_from(bytes).ok()),
        behind,
        edit,
    })
}

/// A word of a later version.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a word that this version knows")]
pub(crate) struct UnknownWord(pub(crate) String);

pub(crate) fn undecodable(
    column: &str,
    source: impl std::error::Error + Send + Sync + 'static,
) -> sqlx::Error {
    sqlx::Error::ColumnDecode { index: column.to_owned(), source: Box::new(source) }
}

pub(crate) fn required(row: &SqliteRow, column: &str) -> Result<time::OffsetDateTime, sqlx::Error> {
    timestamp(row, column)?.ok_or_else(|| undecodable(column, sqlx::error::UnexpectedNullError))
}

fn parse_failures(json: &str) -> Result<Vec<HoldFailure>, serde_json::Error> {
    #[derive(serde::Deserialize)]
    struct Stored {
        #[serde(with = "time::serde::rfc3339")]
        at: time::OffsetDateTime,
        error: String,
    }
    let stored: Vec<Stored> = serde_json::from_str(json)?;
    Ok(stored.into_iter().map(|Stored { at, error }| HoldFailure { at, error }).collect())
}

/// Finds, changes and audits, in one transaction.
async fn act(
    connection: &mut SqliteConnection,
    named: HeldId,
    action: &AuditedAction,
    kind: Action,
) -> Result<(), NotDone> {
    let mut transaction = connection.begin_with("begin immediate").await?;
    let mut found = find(&mut transaction, named).await?;
    let held = found.pop().ok_or(NotDone::NotHeld)?;
    if !found.is_empty() {
        return Err(NotDone::Several(found.iter().chain([&held]).map(|held| Seq(held.seq)).collect()));
    }
    match kind {
        Action::Retry => {
            if held.head_seq != held.seq {
                return Err(NotDone::Behind(held.head));
            }
            retry(&mut transaction, held.seq).await?;
        }
        Action::Discard => {
            discard(&mut transaction, held.seq, held.key_hash).await?;
        }
    }
    let audited = Audited {
        kind: kind.as_str(),
        id: named.id.to_string(),
        seq: held.seq,
        topic: held.topic,
        reason: held.reason,
        correlation_id: String::from_utf8_lossy(&held.correlation_id).into_owned(),
        details: None,
    };
    audited.write(&mut transaction, action).await?;
    transaction.commit().await?;
    Ok(())
}

impl Action {
    fn as_str(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Discard => "discard",
        }
    }
}

/// Ascending; more than one if an application has used the id more than once.
async fn find(connection: &mut SqliteConnection, named: HeldId) -> Result<Vec<HeldRow>, sqlx::Error> {
    let rows = sqlx::query(include_str!("sql/held_find.sql"))
        .bind(named.id.to_string())
        .bind(named.seq.map(|seq| seq.0))
        .fetch_all(connection)
        .await?;
    let found = rows.iter().map(|row| {
        let head: String = row.try_get("head")?;
        Ok(HeldRow {
            seq: row.try_get("seq")?,
            topic: row.try_get("topic")?,
            key_hash: row.try_get("key_hash")?,
            reason: row.try_get("reason")?,
            correlation_id: row.try_get("correlation_id")?,
            head: head.parse().map_err(|error| undecodable("id", error))?,
            head_seq: row.try_get("head_seq")?,
        })
    });
    found.collect()
}

async fn scheduled_list(
    connection: &mut SqliteConnection,
    filter: &ScheduledFilter,
) -> Result<Vec<ScheduledMessage>, Failure> {
    let rows = sqlx::query(include_str!("sql/scheduled_list.sql"))
        .bind(filter.id.map(|id| id.to_string()))
        .bind(filter.topic.as_ref().map(|topic| topic.as_str().to_owned()))
        .bind(limit(filter.limit))
        .fetch_all(connection)
        .await?;
    let missing = |column: &str| sqlx::Error::ColumnNotFound(column.to_owned());
    rows.iter()
        .map(|row| {
            let id: String = row.try_get("id")?;
            let correlation_id: &[u8] = row.try_get("correlation_id")?;
            let key_hash: Option<i64> = row.try_get("key_hash")?;
            Ok(ScheduledMessage {
                seq: Seq(row.try_get("seq")?),
                id: id.parse().unwrap_or_default(),
                correlation_id: String::from_utf8_lossy(correlation_id).into_owned(),
                topic: row.try_get("topic")?,
                key_hash: shown_key_hash(key_hash.map(KeyHash::from_i64)),
                created_at: timestamp(row, "created_at")?.ok_or_else(|| missing("created_at"))?,
                due_at: timestamp(row, "due_at")?.ok_or_else(|| missing("due_at"))?,
                cancelled_by: row.try_get("cancelled_by")?,
            })
        })
        .collect()
}

/// Whether there is a scheduled intent of this id whose time has not come.
async fn scheduled_cancel(
    connection: &mut SqliteConnection,
    id: Uuid,
    action: &AuditedAction,
) -> Result<bool, Failure> {
    let cancelled = sqlx::query(include_str!("sql/scheduled_cancel.sql"))
        .bind(id.to_string())
        .bind(id.as_bytes().to_vec())
        .bind(&action.who)
        .bind(&action.why)
        .execute(connection)
        .await?;
    Ok(cancelled.rows_affected() > 0)
}
