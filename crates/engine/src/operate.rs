//! What operators ask of an outbox. No part of the loop: commands call it from a process of their own.

mod edit;

mod filter;

use std::fmt;
use std::future::Future;
use std::str::FromStr;
use std::time::Duration;

use outboxd_core::{HoldReason, HoldState, KeyHash, Seq, TopicPattern};
use serde::{Serialize, Serializer};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::outbox::OutboxError;
use crate::replays::ReplayState;
use crate::upkeep::Backlog;

pub use edit::{EditDone, EditRefusal, Editable, HeldEdit, ShownEdit, StoredEdit};
pub use filter::{BulkAction, HeldFilter, HeldMatch, HeldSpan, HeldStep};

/// One held message, as an operator names it: `id`, or `id@seq` where an application has used an id more than once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(into = "String")]
pub struct HeldId {
    /// Message id.
    pub id: Uuid,
    /// Place in the outbox; `None`: there is only one of that id.
    pub seq: Option<Seq>,
}

impl From<Uuid> for HeldId {
    fn from(id: Uuid) -> Self {
        Self { id, seq: None }
    }
}

impl From<HeldId> for String {
    fn from(named: HeldId) -> Self {
        named.to_string()
    }
}

impl fmt::Display for HeldId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.seq {
            None => write!(f, "{}", self.id),
            Some(seq) => write!(f, "{}@{seq}", self.id),
        }
    }
}

/// Not the name of a held message.
#[derive(Debug, thiserror::Error)]
#[error("expected a message id, or <id>@<seq> where several have the same id")]
pub struct HeldIdError;

impl FromStr for HeldId {
    type Err = HeldIdError;

    fn from_str(text: &str) -> Result<Self, HeldIdError> {
        let (id, seq) = match text.split_once('@') {
            None => (text, None),
            Some((id, seq)) => (id, Some(Seq(seq.parse().map_err(|_| HeldIdError)?))),
        };
        Ok(Self { id: id.parse().map_err(|_| HeldIdError)?, seq })
    }
}

/// One failed attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HoldFailure {
    /// When, by the database's clock.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// What it said.
    pub error: String,
}

/// A held message as an operator sees it: no key and no payload.
#[derive(Clone, Debug, Serialize)]
pub struct HeldMessage {
    /// Place in the outbox.
    pub seq: Seq,
    /// Message id.
    pub id: Uuid,
    /// Correlation id.
    pub correlation_id: String,
    /// Topic.
    pub topic: String,
    /// Hash of topic and key, 16 hex digits; `None` without a key.
    pub key_hash: Option<String>,
    /// What it waits for.
    pub state: HoldState,
    /// Why.
    pub reason: HoldReason,
    /// What the last attempt said.
    pub error: Option<String>,
    /// Attempts charged.
    pub attempts: u32,
    /// Failed attempts, newest last, at most ten.
    pub failures: Vec<HoldFailure>,
    /// Where the copy of a parked message is: `topic[partition]@offset`.
    pub dead_letter: Option<String>,
    /// When the intent was inserted.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// When it was set aside.
    #[serde(with = "time::serde::rfc3339")]
    pub held_at: OffsetDateTime,
    /// When it is tried again by itself; `None` if it waits for something else.
    #[serde(with = "time::serde::rfc3339::option")]
    pub due_at: Option<OffsetDateTime>,
    /// Later held messages of its key.
    pub followers: u64,
    /// Payload size in bytes; `None` for a tombstone.
    pub payload_bytes: Option<u64>,
    /// The first held message of its key, if it waits behind that.
    pub behind: Option<HeldId>,
    /// What operators have changed about it.
    pub edit: Option<ShownEdit>,
}

/// Which lines of the audit are meant. Empty: all of them.
#[derive(Clone, Debug, Default)]
pub struct AuditFilter {
    /// Message id.
    pub id: Option<Uuid>,
    /// Topic.
    pub topic: Option<TopicPattern>,
    /// What was done: retry, discard, edit, cancel or sweep.
    pub kind: Option<String>,
    /// Who did it.
    pub who: Option<String>,
    /// At least so long ago, by the database's clock.
    pub older_than: Option<Duration>,
    /// Not so long ago, by the database's clock.
    pub younger_than: Option<Duration>,
    /// At most so many, the newest first; 0 means all.
    pub limit: u32,
}

/// Who did what to which message, and why.
#[derive(Clone, Debug, Serialize)]
pub struct AuditLine {
    /// When, by the database's clock.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// What.
    pub kind: String,
    /// Message id.
    pub id: Uuid,
    /// Place in the outbox.
    pub seq: Seq,
    /// Its topic then.
    pub topic: String,
    /// What it was held for.
    pub reason_held: String,
    /// Correlation id.
    pub correlation_id: Option<String>,
    /// Who.
    pub who: String,
    /// Why.
    pub why: String,
    /// What exactly, if there is more to say.
    pub details: Option<serde_json::Value>,
}

/// Which scheduled messages are meant. Empty: all of them.
#[derive(Clone, Debug, Default)]
pub struct ScheduledFilter {
    /// Message id.
    pub id: Option<Uuid>,
    /// Topic.
    pub topic: Option<TopicPattern>,
    /// At most so many, earliest first; 0 means all.
    pub limit: u32,
}

/// A message whose time has not come, as an operator sees it: no key and no payload.
#[derive(Clone, Debug, Serialize)]
pub struct ScheduledMessage {
    /// Place in the outbox.
    pub seq: Seq,
    /// Message id.
    pub id: Uuid,
    /// Correlation id.
    pub correlation_id: String,
    /// Topic.
    pub topic: String,
    /// Hash of topic and key, 16 hex digits; `None` without a key.
    pub key_hash: Option<String>,
    /// When the intent was inserted.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// Its time.
    #[serde(with = "time::serde::rfc3339")]
    pub due_at: OffsetDateTime,
    /// Who took it back: it is not delivered when its time comes.
    pub cancelled_by: Option<String>,
}

/// Who acts and why; kept in the audit.
#[derive(Clone, Debug)]
pub struct AuditedAction {
    /// Who.
    pub who: String,
    /// Why.
    pub why: String,
}

/// Who leads.
#[derive(Clone, Debug, Serialize)]
pub struct LeaderStatus {
    /// The relay instance that last took the lead.
    pub relay: Option<String>,
    /// Its epoch.
    pub epoch: i64,
    /// When it took the lead.
    #[serde(with = "time::serde::rfc3339::option")]
    pub led_at: Option<OffsetDateTime>,
    /// Whether a relay holds the lead now.
    pub alive: bool,
}

/// An outbox at a glance.
#[derive(Clone, Debug, Serialize)]
pub struct OutboxStatus {
    /// "postgres" or "sqlite", with the server's version.
    pub database: String,
    /// Schema version that is installed.
    pub schema_version: i32,
    /// The leader.
    pub leader: LeaderStatus,
    /// The settled cursor, as text.
    pub cursor: String,
    /// When it was settled last.
    #[serde(with = "time::serde::rfc3339::option")]
    pub settled_at: Option<OffsetDateTime>,
    /// The Kafka cluster that it is published to; `None` until a relay has reached one.
    pub kafka_cluster: Option<String>,
    /// Committed messages that are not dispatched and not held.
    pub backlog_messages: u64,
    /// Age of the oldest undelivered message.
    pub oldest_age_seconds: f64,
    /// Scheduled messages whose time has not come; exact up to 10,000.
    pub scheduled_messages: u64,
    /// Held messages by state and reason.
    #[serde(serialize_with = "held_by_name")]
    pub held: Vec<(String, String, u64)>,
    /// Replays that are not over, by state.
    #[serde(serialize_with = "replays_by_name")]
    pub replays: Vec<(ReplayState, u64)>,
}

/// Objects with `state` and `replays`.
fn replays_by_name<S: Serializer>(replays: &[(ReplayState, u64)], serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Open {
        state: ReplayState,
        replays: u64,
    }
    serializer.collect_seq(replays.iter().map(|(state, replays)| Open { state: *state, replays: *replays }))
}

/// Objects with `state`, `reason` and `messages`, as the relay's own status has them.
fn held_by_name<S: Serializer>(held: &[(String, String, u64)], serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Held<'a> {
        state: &'a str,
        reason: &'a str,
        messages: u64,
    }
    serializer.collect_seq(held.iter().map(|(state, reason, messages)| Held {
        state,
        reason,
        messages: *messages,
    }))
}

impl OutboxStatus {
    /// Fills in what the backlog says.
    #[must_use]
    pub fn with_backlog(mut self, backlog: Backlog) -> Self {
        self.backlog_messages = backlog.messages;
        self.oldest_age_seconds = backlog.oldest_age.as_secs_f64();
        self.scheduled_messages = backlog.scheduled;
        self.held = backlog.held;
        self.replays = backlog.replays;
        self
    }
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// As it should be.
    Ok,
    /// Works, with a risk that the remedy removes.
    Warning,
    /// The relay would not run, or would break a promise.
    Error,
}

/// One line of a preflight.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// What was looked at: "sequence cache".
    pub check: String,
    /// How it is.
    pub severity: Severity,
    /// What was found.
    pub found: String,
    /// What to do; empty if nothing.
    pub remedy: String,
}

/// Why an operator's command failed.
#[derive(Debug, thiserror::Error)]
pub enum OperateError {
    /// The database.
    #[error(transparent)]
    Outbox(#[from] OutboxError),
    /// No held message has that id.
    #[error("no held message has id {0}")]
    NotHeld(Uuid),
    /// No message of that id waits for its time.
    #[error("no message with id {0} is scheduled, or its time has come: look at `outboxd held show {0}`")]
    NotScheduled(Uuid),
    /// An application has used the id more than once.
    #[error("messages {} have the id {id}: name one of them, as {id}@{}", list(.seqs), .seqs.first().map_or(0, |seq| seq.0))]
    SeveralHeld {
        /// The id.
        id: Uuid,
        /// Their places in the outbox, ascending.
        seqs: Vec<Seq>,
    },
    /// The message waits behind another one, which must be dealt with first.
    #[error("message {id} waits behind {head} of the same key: retry or discard that one first")]
    Behind {
        /// The message.
        id: Uuid,
        /// The one it waits for.
        head: Uuid,
    },
    /// The edit is not taken.
    #[error("message {id}: {refusal}")]
    Edit {
        /// The message.
        id: Uuid,
        /// Why.
        refusal: EditRefusal,
    },
}

fn list(seqs: &[Seq]) -> String {
    seqs.iter().map(Seq::to_string).collect::<Vec<_>>().join(", ")
}

/// What operators ask.
pub trait Operate: Send + Sync {
    /// The outbox at a glance.
    ///
    /// # Errors
    /// [`OutboxError`].
    fn status(&self) -> impl Future<Output = Result<OutboxStatus, OutboxError>> + Send;

    /// Everything that could keep the relay from doing its work, each with its remedy. Findings that hold as they should are
    /// listed too.
    ///
    /// # Errors
    /// [`OutboxError::Unavailable`] if the database does not answer at all.
    fn check(&self) -> impl Future<Output = Result<Vec<Finding>, OutboxError>> + Send;

    /// The topics that held messages and the newest intents name, without repetition and in order. What Kafka sees of them is the
    /// routes' business.
    ///
    /// # Errors
    /// [`OutboxError`].
    fn topics(&self) -> impl Future<Output = Result<Vec<String>, OutboxError>> + Send;

    /// The largest intent that the outbox takes, in bytes: writers are told, and topics should take as much.
    ///
    /// # Errors
    /// [`OutboxError`].
    fn max_message_bytes(&self) -> impl Future<Output = Result<usize, OutboxError>> + Send;

    /// Held messages, ascending by `seq`.
    ///
    /// # Errors
    /// [`OutboxError`].
    fn held_list(
        &self,
        filter: &HeldFilter,
    ) -> impl Future<Output = Result<Vec<HeldMessage>, OutboxError>> + Send;

    /// Makes one held message due now; its attempts stay charged. Audited.
    ///
    /// # Errors
    /// [`OperateError::NotHeld`], [`OperateError::SeveralHeld`], [`OperateError::Behind`] (a follower is never taken out of its order).
    fn held_retry(
        &self,
        named: impl Into<HeldId> + Send,
        action: &AuditedAction,
    ) -> impl Future<Output = Result<(), OperateError>> + Send;

    /// Gives one held message up for good: its intent stays in the table until it is purged, the audit keeps who and
    /// why, and the next message of its key becomes due.
    ///
    /// # Errors
    /// [`OperateError::NotHeld`], [`OperateError::SeveralHeld`].
    fn held_discard(
        &self,
        named: impl Into<HeldId> + Send,
        action: &AuditedAction,
    ) -> impl Future<Output = Result<(), OperateError>> + Send;

    /// How many held messages the filter means: one walk over them.
    ///
    /// # Errors
    /// [`OutboxError`].
    fn held_match(&self, filter: &HeldFilter) -> impl Future<Output = Result<HeldMatch, OutboxError>> + Send;

    /// One step of an action on many: of the messages in the span that the filter means (its limit is not looked at), at
    /// most so many, in one transaction. Each is audited. A retry begins with the oldest, a discard with the newest.
    ///
    /// # Errors
    /// [`OutboxError`]: nothing of this step was done.
    fn held_act(
        &self,
        kind: BulkAction,
        filter: &HeldFilter,
        span: HeldSpan,
        messages: u32,
        action: &AuditedAction,
    ) -> impl Future<Output = Result<HeldStep, OutboxError>> + Send;

    /// Changes what is published of a held message, and parks it until it is retried, unless the edit says so itself. The intent
    /// stays as it is. Another topic is another key: what waited behind the message goes without it. Audited.
    ///
    /// # Errors
    /// As [`Operate::held_retry`], and [`OperateError::Edit`].
    fn held_edit(
        &self,
        named: HeldId,
        edit: &HeldEdit,
        action: &AuditedAction,
    ) -> impl Future<Output = Result<EditDone, OperateError>> + Send;

    /// The audit, newest first.
    ///
    /// # Errors
    /// [`OutboxError`].
    fn held_audit(
        &self,
        filter: &AuditFilter,
    ) -> impl Future<Output = Result<Vec<AuditLine>, OutboxError>> + Send;
    /// Messages whose time has not come, earliest first: those that the relay has taken over.
    ///
    /// # Errors
    /// [`OutboxError`].
    fn scheduled_list(
        &self,
        filter: &ScheduledFilter,
    ) -> impl Future<Output = Result<Vec<ScheduledMessage>, OutboxError>> + Send;

    /// Takes a scheduled intent back, also one that the relay has not taken over yet: it is not delivered. Audited when its time
    /// comes.
    ///
    /// # Errors
    /// [`OperateError::NotScheduled`].
    fn scheduled_cancel(
        &self,
        id: Uuid,
        action: &AuditedAction,
    ) -> impl Future<Output = Result<(), OperateError>> + Send;

    /// How long a leader that stops answering keeps the lead.
    fn takeover_after(&self) -> Duration;
}

/// A key's hash as operators see it.
#[must_use]
pub fn shown_key_hash(hash: Option<KeyHash>) -> Option<String> {
    hash.map(|hash| hash.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_held_message_is_named_by_its_id_and_where_that_is_not_enough_by_its_seq() {
        let id = Uuid::from_u128(7);
        for named in [HeldId { id, seq: None }, HeldId { id, seq: Some(Seq(12)) }] {
            assert_eq!(named.to_string().parse::<HeldId>().unwrap(), named);
        }
        for wrong in ["7", "@7", &format!("{id}@"), &format!("{id}@x")] {
            assert!(wrong.parse::<HeldId>().is_err(), "{wrong}");
        }
        let several = OperateError::SeveralHeld { id, seqs: vec![Seq(3), Seq(9)] }.to_string();
        assert!(several.contains("messages 3, 9") && several.contains(&format!("{id}@3")), "{several}");
    }
}
