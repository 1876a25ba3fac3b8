//! "What happened to this transaction?": what operators ask of an outbox about single intents.
//!
//! In three steps that know nothing of one another. An adapter fetches facts in few bounded statements ([`Trace`], [`Claims`]).
//! [`gather`] asks for the right ones and follows what caused what. [`tell`], which is pure, makes the timeline of each message
//! and says what it waits for. The answer, [`Traced`], is what `outboxd trace --output json` and `GET /trace/{id}` print.

mod asked;

mod facts;

mod gather;

mod tell;

mod waits;

#[cfg(test)]
mod tests;

use std::future::Future;

use outboxd_core::Seq;
use serde::Serialize;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::outbox::OutboxError;

pub use asked::{By, Place, Recognised, recognise, trace_id};
pub use facts::{
    Action, Claim, Contents, Fact, Failed, Head, HeldNow, Intent, OpenTransaction, PlaceBefore, ReplayAsked,
    RewindNoted, SilentTerm, Standing, TakenBack, Transactions, Waiting, WasHeld, XidStatus,
};
pub use gather::{Gathered, TraceQuery, gather};
pub use tell::tell;

/// What an outbox is asked for a trace. Every statement is bounded by its index or by its limit; without the optional indexes
/// ([`Standing::indexes`]) [`Trace::trace_find`] walks the table, as long as a call may take.
pub trait Trace: Send + Sync {
    /// The outbox at this moment.
    ///
    /// # Errors
    /// [`OutboxError`].
    fn trace_standing(&self) -> impl Future<Output = Result<Standing, OutboxError>> + Send;

    /// Intents, ascending by `seq`, at most `limit`.
    ///
    /// # Errors
    /// [`OutboxError`], also if the walk took longer than a call may.
    fn trace_find(
        &self,
        by: &By,
        limit: u32,
    ) -> impl Future<Output = Result<Vec<Intent>, OutboxError>> + Send;

    /// What is known of these intents, all of one moment.
    ///
    /// # Errors
    /// [`OutboxError`].
    fn trace_facts(&self, seqs: &[Seq]) -> impl Future<Output = Result<Vec<Fact>, OutboxError>> + Send;

    /// Replays of these numbers.
    ///
    /// # Errors
    /// [`OutboxError`].
    fn trace_replays(
        &self,
        replays: &[i64],
    ) -> impl Future<Output = Result<Vec<ReplayAsked>, OutboxError>> + Send;

    /// What became of a transaction, and which open transactions have written to the outbox. `None`: the database does not show them.
    ///
    /// # Errors
    /// [`OutboxError`].
    fn trace_transactions(
        &self,
        xid: Option<u64>,
    ) -> impl Future<Output = Result<Option<Transactions>, OutboxError>> + Send;

    /// Key, headers and payload of these intents. The reader's role may not ask for them.
    ///
    /// # Errors
    /// [`OutboxError::Refused`] names the grant that is missing.
    fn trace_contents(&self, seqs: &[Seq])
    -> impl Future<Output = Result<Vec<Contents>, OutboxError>> + Send;
}

/// What a consumer's inbox is asked for a trace.
pub trait Claims: Send + Sync {
    /// The claims of these messages, of every consumer that has an inbox there.
    ///
    /// # Errors
    /// [`OutboxError`].
    fn claims(&self, ids: &[Uuid]) -> impl Future<Output = Result<Vec<Claim>, OutboxError>> + Send;
}

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TracedState {
    /// Acknowledged and settled.
    Delivered,
    /// Not dealt with yet.
    Backlog,
    /// Set aside.
    Held,
    /// Its time has not come.
    Scheduled,
    /// Taken back before its time.
    Cancelled,
    /// Given up by an operator.
    Discarded,
    /// Dealt with so long ago that the receipt is purged.
    ReceiptPurged,
    /// The cursor has passed it and nothing is known of it. The sweep finds it.
    Unaccounted,
}

impl TracedState {
    /// Whether nothing more happens by itself.
    #[must_use]
    pub fn is_final(self) -> bool {
        match self {
            Self::Delivered | Self::Cancelled | Self::Discarded | Self::ReceiptPurged => true,
            Self::Backlog | Self::Held | Self::Scheduled | Self::Unaccounted => false,
        }
    }

    /// The word that people see.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Backlog => "backlog",
            Self::Held => "held",
            Self::Scheduled => "scheduled",
            Self::Cancelled => "cancelled",
            Self::Discarded => "discarded",
            Self::ReceiptPurged => "receipt purged",
            Self::Unaccounted => "unaccounted",
        }
    }
}

/// What a line of a timeline is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StepKind {
    /// The application wrote it.
    Written,
    /// The relay set it aside until its time.
    Scheduled,
    /// It was set aside.
    Held,
    /// An attempt failed.
    AttemptFailed,
    /// It was parked.
    Parked,
    /// Somebody acted on it.
    Action,
    /// It was taken back.
    TakenBack,
    /// A term ended without a word.
    TermEnded,
    /// A relay went back to the settled cursor.
    Rewound,
    /// Kafka acknowledged it.
    Acknowledged,
    /// Its receipt was stored.
    Settled,
    /// Somebody asked for a replay.
    ReplayAsked,
    /// Kafka acknowledged a copy of a replay.
    Replayed,
    /// A consumer claimed it.
    Claimed,
    /// A consumer got it again and changed nothing.
    DuplicateAbsorbed,
}

/// One line of a timeline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    /// When, by the database's clock.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// Milliseconds since the line before; `None` of the first.
    pub after_ms: Option<i64>,
    /// What it is about.
    pub kind: StepKind,
    /// What happened.
    pub text: String,
}

/// Where a copy of a message landed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Landed {
    /// The message.
    #[serde(skip)]
    pub seq: Seq,
    /// Topic.
    pub topic: String,
    /// Partition.
    pub partition: i32,
    /// Offset.
    pub offset: i64,
    /// When the broker acknowledged it.
    #[serde(with = "time::serde::rfc3339")]
    pub acknowledged_at: OffsetDateTime,
    /// When that was settled.
    #[serde(with = "time::serde::rfc3339")]
    pub settled_at: OffsetDateTime,
    /// The receipt row: one a page.
    pub receipt: i64,
    /// The term.
    pub epoch: i64,
    /// The relay.
    pub relay: Option<String>,
    /// The replay that it belongs to; `None`: it is the message itself.
    pub replay: Option<i64>,
}

/// Key, headers and payload, as they are shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Shown {
    /// Key.
    pub key: Option<String>,
    /// The intent's own headers.
    pub headers: Option<serde_json::Value>,
    /// The payload, if it is text; `None` of a tombstone and of other bytes.
    pub payload: Option<String>,
    /// The payload in hexadecimal digits, if it is not text.
    pub payload_hex: Option<String>,
}

/// A message and everything that is known of it.
#[derive(Clone, Debug, Serialize)]
pub struct TracedMessage {
    /// The intent.
    #[serde(flatten)]
    pub intent: Intent,
    /// Whether it is one that was asked for; the others caused it, or were caused by it.
    pub asked: bool,
    /// How far below the first cause it stands in the answer.
    pub depth: usize,
    /// What became of it.
    pub state: TracedState,
    /// What it waits for; `None` if it waits for nothing.
    pub waits_for: Option<String>,
    /// What to do about that, if somebody must.
    pub remedy: Option<String>,
    /// Milliseconds from the time that it could be delivered to the first acknowledgement.
    pub delivered_after_ms: Option<i64>,
    /// Where it landed, with the copies of replays.
    pub copies: Vec<Landed>,
    /// What consumers said.
    pub claims: Vec<Claim>,
    /// Everything that happened, in order.
    pub timeline: Vec<Step>,
    /// Key, headers and payload, if they were asked for.
    pub contents: Option<Shown>,
}

/// The answer.
#[derive(Clone, Debug, Serialize)]
pub struct Traced {
    /// What was asked for.
    pub asked: String,
    /// When, by the database's clock.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// The messages: each behind what caused it.
    pub messages: Vec<TracedMessage>,
    /// There are more than the limit.
    pub more: bool,
    /// What is to be said of the answer as a whole.
    pub notes: Vec<String>,
    /// Open transactions that may write, or have written, what was asked for.
    pub transactions: Vec<OpenTransaction>,
}

impl Traced {
    /// Whether something was found, and nothing more happens by itself.
    #[must_use]
    pub fn is_final(&self) -> bool {
        !self.messages.is_empty() && self.messages.iter().all(|message| message.state.is_final())
    }
}

/// A time as it is said: RFC 3339 in UTC, to the millisecond.
fn said(at: OffsetDateTime) -> String {
    let at = at.to_offset(time::UtcOffset::UTC);
    let at = at.replace_millisecond(at.millisecond()).unwrap_or(at);
    at.format(&time::format_description::well_known::Rfc3339).unwrap_or_default()
}
