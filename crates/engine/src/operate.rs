//! What operators ask of an outbox. No part of the loop: commands call it from a process of their own.

use std::future::Future;
use std::time::Duration;

use outboxd_core::{HoldReason, HoldState, KeyHash, Seq};
use serde::{Serialize, Serializer};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::outbox::{Backlog, OutboxError};

/// Which held messages are meant. Empty: all of them.
#[derive(Clone, Debug, Default)]
pub struct HeldFilter {
    /// Message id.
    pub id: Option<Uuid>,
    /// Topic.
    pub topic: Option<String>,
    /// State.
    pub state: Option<HoldState>,
    /// Reason.
    pub reason: Option<HoldReason>,
    /// At most so many, ascending by `seq`; 0 means all.
    pub limit: u32,
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
    /// Committed messages that are not dispatched and not held.
    pub backlog_messages: u64,
    /// Age of the oldest undelivered message.
    pub oldest_age_seconds: f64,
    /// Held messages by state and reason.
    #[serde(serialize_with = "held_by_name")]
    pub held: Vec<(String, String, u64)>,
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
        self.held = backlog.held;
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
    /// The message waits behind another one, which must be dealt with first.
    #[error("message {id} waits behind {head} of the same key: retry or discard that one first")]
    Behind {
        /// The message.
        id: Uuid,
        /// The one it waits for.
        head: Uuid,
    },
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

    /// The topics in use: those of held messages and of the newest intents, without repetition and in order.
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
    /// [`OperateError::NotHeld`], [`OperateError::Behind`] (a follower is never taken out of its order).
    fn held_retry(
        &self,
        id: Uuid,
        action: &AuditedAction,
    ) -> impl Future<Output = Result<(), OperateError>> + Send;

    /// Gives one held message up for good: its intent stays in the table until it is purged, the audit keeps who and
    /// why, and the next message of its key becomes due.
    ///
    /// # Errors
    /// [`OperateError::NotHeld`].
    fn held_discard(
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
