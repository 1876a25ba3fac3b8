//! What is asked of the outbox about replays: dispatched messages that are published again on purpose.
//!
//! A replay is a row: which messages, who asked, why, and how far it is. The leader works on one at a time, the oldest first, through
//! [`Replays`]; operators ask for them through [`OperateReplays`]. Contract, executed by the conformance suite in `outboxd-testkit`:
//!
//! - Only what was dispatched is published again: what the cursor has dealt with and is neither held nor waiting for its time, and was not
//!   discarded or cancelled; as it was published, so with what an operator has edited.
//! - Progress is a compare-and-swap: who does not know how far a replay is cannot say how far it is now.
//! - A failure of [`Replays`] costs the replay time and the lead nothing: it is asked on a session that nothing else depends on.

use std::future::Future;

use outboxd_core::{Message, ReceiptEntry, Seq, TopicPattern};
use serde::{Serialize, Serializer};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use crate::operate::{AuditedAction, HeldId};
use crate::outbox::{OutboxError, PageLimit, Term};

/// Where a replay stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ReplayState {
    /// The leader works on it, or will when those before it are done.
    Running,
    /// Until somebody resumes it.
    Paused,
    /// A message could not be published: until somebody resumes or cancels it.
    Stopped,
    /// Given up.
    Cancelled,
    /// Everything was published.
    Done,
}

impl ReplayState {
    /// Every state.
    pub const ALL: [Self; 5] = [Self::Running, Self::Paused, Self::Stopped, Self::Cancelled, Self::Done];

    /// The word that is stored.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
            Self::Cancelled => "cancelled",
            Self::Done => "done",
        }
    }

    /// The state of that word.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == word)
    }

    /// Whether anything may still come of it.
    #[must_use]
    pub fn is_open(self) -> bool {
        matches!(self, Self::Running | Self::Paused | Self::Stopped)
    }
}

impl Serialize for ReplayState {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// A replay as the leader works on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplayTask {
    /// Its number.
    pub replay: i64,
    /// Who asked for it.
    pub who: String,
    /// The topic at Kafka that gets the copies instead of each message's own.
    pub to_topic: Option<String>,
    /// Messages a second at most.
    pub rate: Option<u32>,
    /// How many messages were meant when it was requested.
    pub total: u64,
    /// What is meant up to here was published again.
    pub pos: Seq,
    /// Nothing behind this one is meant.
    pub last: Seq,
    /// Terms in a row that took it up and wrote nothing down of it, if the last of them ended without a word.
    pub in_vain: u32,
}

/// Which messages of which replay come next.
#[derive(Clone, Copy, Debug)]
pub struct ReplayQuery {
    /// The leader's term.
    pub term: Term,
    /// The replay that is worked on, and the place behind which to go on; `None`: the oldest that is running, from where it stands.
    pub going_on: Option<(i64, Seq)>,
    /// At most so many.
    pub limit: PageLimit,
    /// At most so many messages are looked at, meant or not.
    pub rows: u32,
}

/// The next messages of a replay.
#[derive(Clone, Debug)]
pub struct ReplayChunk {
    /// The replay.
    pub task: ReplayTask,
    /// What is meant, ascending by `seq`; may be none.
    pub messages: Vec<Message>,
    /// Nothing else that is meant lies at or before this place.
    pub reached: Seq,
}

/// The message that a replay could not publish, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplayStop {
    /// Its place.
    pub seq: Seq,
    /// Its id.
    pub id: Uuid,
    /// Why.
    pub error: String,
}

/// What becomes of a replay with what is written down of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplayTurn {
    /// It goes on.
    GoesOn,
    /// Nothing is left of it.
    Done,
    /// It waits for an operator.
    Stopped(ReplayStop),
}

/// What was published again.
#[derive(Clone, Debug)]
pub struct ReplayProgress {
    /// The leader's term.
    pub term: Term,
    /// The replay.
    pub replay: i64,
    /// How far it was.
    pub before: Seq,
    /// How far it is.
    pub after: Seq,
    /// Where the copies landed, ascending by `seq`.
    pub receipts: Vec<ReceiptEntry>,
    /// What becomes of it.
    pub turn: ReplayTurn,
}

/// The database that holds the outbox, as the leader's replays need it.
pub trait Replays: Send + Sync + 'static {
    /// The next messages of a replay. `None`: the one that is asked for does not run (any longer), or none does.
    ///
    /// # Errors
    /// [`OutboxError::Fenced`] if the term is over.
    fn replay_chunk(
        &self,
        query: &ReplayQuery,
    ) -> impl Future<Output = Result<Option<ReplayChunk>, OutboxError>> + Send;

    /// Writes down how far a replay is, with receipts, in one statement; without receipts and at the same place, that this term takes it up. A replay that was paused or cancelled meanwhile stays so; what
    /// was published is written down all the same. The state that it has now; `None`: it does not stand where the leader thought, and
    /// nothing was written.
    ///
    /// # Errors
    /// [`OutboxError::Fenced`] if the term is over.
    fn replay_progress(
        &self,
        progress: &ReplayProgress,
    ) -> impl Future<Output = Result<Option<ReplayState>, OutboxError>> + Send;
}

/// Which dispatched messages an operator means: those that meet every condition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplayFilter {
    /// Message ids; empty: any.
    pub ids: Vec<Uuid>,
    /// Correlation id.
    pub correlation_id: Option<String>,
    /// The topic that the intent names.
    pub topic: Option<TopicPattern>,
    /// Key.
    pub key: Option<String>,
    /// Inserted at this time or later, by the database's clock.
    pub from: Option<OffsetDateTime>,
    /// Inserted before this time.
    pub before: Option<OffsetDateTime>,
}

/// Which part of the outbox a step of the search looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplaySpan {
    /// Behind this place.
    pub above: Seq,
    /// Up to this one; `None`: up to where the cursor is now.
    pub up_to: Option<Seq>,
    /// At most so many messages.
    pub rows: u32,
}

/// What a step of the search has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplayFound {
    /// What is meant, ascending.
    pub seqs: Vec<Seq>,
    /// How many messages were looked at.
    pub looked_at: u64,
    /// Up to where.
    pub reached: Seq,
    /// Up to where the search goes.
    pub up_to: Seq,
}

impl ReplayFound {
    /// Whether the search is over.
    #[must_use]
    pub fn is_last(&self) -> bool {
        self.reached >= self.up_to
    }
}

/// A message that a replay means, as an operator sees it: no key and no payload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ReplaySample {
    /// Place in the outbox.
    pub seq: Seq,
    /// Message id.
    pub id: Uuid,
    /// The topic that the intent names.
    pub topic: String,
    /// Correlation id.
    pub correlation_id: String,
    /// Payload size in bytes; `None` for a tombstone.
    pub payload_bytes: Option<u64>,
    /// When the intent was inserted.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
}

/// A replay that is asked for.
#[derive(Clone, Debug)]
pub struct ReplayRequest {
    /// Which messages.
    pub filter: ReplayFilter,
    /// These, and no others; `None`: whatever meets the filter.
    pub seqs: Option<Vec<Seq>>,
    /// The first of them.
    pub first: Seq,
    /// The last of them.
    pub last: Seq,
    /// How many they are.
    pub total: u64,
    /// The topic at Kafka that gets them instead.
    pub to_topic: Option<String>,
    /// Messages a second at most.
    pub rate: Option<u32>,
}

impl ReplayRequest {
    /// What the audit keeps of it: everything but the key.
    #[must_use]
    pub fn details(&self) -> serde_json::Value {
        let ReplayFilter { ids, correlation_id, topic, key, from, before } = &self.filter;
        let time = |at: &Option<OffsetDateTime>| at.and_then(|at| at.format(&Rfc3339).ok());
        serde_json::json!({
            "ids": ids,
            "correlation_id": correlation_id,
            "topic": topic.as_ref().map(TopicPattern::as_str),
            "by_key": key.is_some(),
            "from": time(from),
            "before": time(before),
            "to_topic": self.to_topic,
            "rate": self.rate,
            "total": self.total,
        })
    }
}

/// What an operator does about a replay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplayChange {
    /// Let it rest.
    Pause,
    /// Let it go on: a paused one, or one that was stopped and whose cause is gone.
    Resume,
    /// Let a stopped one go on behind the message that it was stopped by, which is then not published again.
    Skip,
    /// Give it up.
    Cancel,
}

impl ReplayChange {
    /// The kind that the audit has it under.
    #[must_use]
    pub fn audited_as(self) -> &'static str {
        match self {
            Self::Pause => "replay pause",
            Self::Resume | Self::Skip => "replay resume",
            Self::Cancel => "replay cancel",
        }
    }

    /// The state that it leads to.
    #[must_use]
    pub fn leads_to(self) -> ReplayState {
        match self {
            Self::Pause => ReplayState::Paused,
            Self::Resume | Self::Skip => ReplayState::Running,
            Self::Cancel => ReplayState::Cancelled,
        }
    }

    /// The states that it may be done in.
    #[must_use]
    pub fn possible_in(self) -> &'static [ReplayState] {
        match self {
            Self::Pause => &[ReplayState::Running],
            Self::Resume => &[ReplayState::Paused, ReplayState::Stopped],
            Self::Skip => &[ReplayState::Stopped],
            Self::Cancel => &[ReplayState::Running, ReplayState::Paused, ReplayState::Stopped],
        }
    }
}

/// A replay as an operator sees it: no key.
#[derive(Clone, Debug, Serialize)]
pub struct ReplayInfo {
    /// Its number.
    pub replay: i64,
    /// Where it stands.
    pub state: ReplayState,
    /// Who asked for it.
    pub who: String,
    /// Why.
    pub why: String,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub requested_at: OffsetDateTime,
    /// How many messages it names one by one; `None`: it means whatever meets its conditions.
    pub named: Option<u64>,
    /// Condition: correlation id.
    pub correlation_id: Option<String>,
    /// Condition: the topic that the intent names.
    pub topic: Option<String>,
    /// Condition: inserted at this time or later.
    #[serde(with = "time::serde::rfc3339::option")]
    pub from: Option<OffsetDateTime>,
    /// Condition: inserted before this time.
    #[serde(with = "time::serde::rfc3339::option")]
    pub before: Option<OffsetDateTime>,
    /// The first place that is meant.
    pub first: Seq,
    /// The last one.
    pub last: Seq,
    /// The topic that gets the copies instead.
    pub to_topic: Option<String>,
    /// Messages a second at most.
    pub rate: Option<u32>,
    /// How many messages were meant when it was requested.
    pub total: u64,
    /// How many copies were acknowledged.
    pub published: u64,
    /// How many were left out because an operator said so.
    pub skipped: u64,
    /// What is meant up to here was published again.
    pub pos: Seq,
    /// Why it was stopped.
    pub error: Option<String>,
    /// The message that it was stopped by.
    pub stopped_by: Option<HeldId>,
    /// When something was written down last.
    #[serde(with = "time::serde::rfc3339")]
    pub changed_at: OffsetDateTime,
    /// Who changed its state last; `None`: nobody but the relay.
    pub changed_by: Option<String>,
}

/// Why a replay could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The database.
    #[error(transparent)]
    Outbox(#[from] OutboxError),
    /// There is none.
    #[error("there is no replay {0}: look at `outboxd replay list`")]
    NoSuch(i64),
    /// Not in this state.
    #[error("replay {replay} is {}: {}", .state.as_str(), said(*.state, *.change))]
    Impossible {
        /// Its number.
        replay: i64,
        /// Where it stands.
        state: ReplayState,
        /// What was asked for.
        change: ReplayChange,
    },
}

fn said(state: ReplayState, change: ReplayChange) -> &'static str {
    match (state, change) {
        (ReplayState::Done | ReplayState::Cancelled, _) => "it is over; start another one",
        (_, ReplayChange::Pause) => "it rests already",
        (_, ReplayChange::Resume) => "it needs nobody to go on",
        (_, ReplayChange::Skip) => "only one that was stopped by a message can leave it out",
        (_, ReplayChange::Cancel) => "it cannot be cancelled",
    }
}

/// What operators ask about replays.
pub trait OperateReplays: Send + Sync {
    /// One step of a search for dispatched messages. No step reads more than it is told to.
    ///
    /// # Errors
    /// [`OutboxError`].
    fn replay_find(
        &self,
        filter: &ReplayFilter,
        span: ReplaySpan,
    ) -> impl Future<Output = Result<ReplayFound, OutboxError>> + Send;

    /// Some of the messages that were found.
    ///
    /// # Errors
    /// [`OutboxError`].
    fn replay_sample(
        &self,
        seqs: &[Seq],
    ) -> impl Future<Output = Result<Vec<ReplaySample>, OutboxError>> + Send;

    /// Asks for a replay. Audited. Its number.
    ///
    /// # Errors
    /// [`OutboxError`].
    fn replay_start(
        &self,
        request: &ReplayRequest,
        action: &AuditedAction,
    ) -> impl Future<Output = Result<i64, OutboxError>> + Send;

    /// Replays, the newest first: one of them, or at most `limit`; 0 means all.
    ///
    /// # Errors
    /// [`OutboxError`].
    fn replay_list(
        &self,
        replay: Option<i64>,
        limit: u32,
    ) -> impl Future<Output = Result<Vec<ReplayInfo>, OutboxError>> + Send;

    /// Pauses, resumes or cancels one. Audited.
    ///
    /// # Errors
    /// [`ReplayError::NoSuch`], [`ReplayError::Impossible`].
    fn replay_change(
        &self,
        replay: i64,
        change: ReplayChange,
        action: &AuditedAction,
    ) -> impl Future<Output = Result<(), ReplayError>> + Send;
}
