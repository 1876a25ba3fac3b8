//! What is asked of the outbox beside the path: how much is undelivered, what may be deleted, whether anything is stranded.
//!
//! Nothing that is dispatched depends on it, and every step is small. Contract, executed by the conformance suite in
//! `outboxd-testkit`: as for [`Outbox`](crate::Outbox).

use std::future::Future;
use std::time::Duration;

use outboxd_core::{Routes, Seq};
use uuid::Uuid;

use crate::outbox::{OutboxError, Term};
use crate::replays::ReplayState;

/// What has not been delivered, from the table.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Backlog {
    /// Committed messages that are not dispatched and not held; exact up to 10,000, an upper estimate beyond.
    pub messages: u64,
    /// Age of the oldest message that is not dispatched, held ones included; zero if there is none. A scheduled message's age
    /// counts from its time on.
    pub oldest_age: Duration,
    /// Scheduled messages whose time has not come; exact up to 10,000 and that much beyond.
    pub scheduled: u64,
    /// Held messages by state and reason, as the words of `HoldState` and `HoldReason`.
    pub held: Vec<(String, String, u64)>,
    /// Replays that are running, paused or stopped.
    pub replays: Vec<(ReplayState, u64)>,
}

/// What purge may delete in one small step.
#[derive(Clone, Copy, Debug)]
pub struct PurgeLimit {
    /// Dispatched intents older than this go.
    pub keep_messages: Duration,
    /// Receipts older than this go.
    pub keep_receipts: Duration,
    /// At most so many rows of each a step.
    pub rows: u32,
}

/// What a purge step deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Purged {
    /// Intents.
    pub messages: u64,
    /// Receipt rows.
    pub receipts: u64,
    /// Whether another step would find more.
    pub more: bool,
}

/// A message that the cursor had passed and nobody had delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stranded {
    /// Its place.
    pub seq: Seq,
    /// Its id.
    pub id: Uuid,
    /// Its correlation id.
    pub correlation_id: String,
}

/// What a turn of the sweep found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Messages compared with what became of them.
    pub compared: u64,
    /// Those that nothing had become of: held now, so that they are published.
    pub stranded: Vec<Stranded>,
    /// The lap has reached the cursor; the next turn begins another.
    pub lap_ended: bool,
    /// Time since a lap ended, by the database's clock; since the first one began, if none has.
    pub lap_age: Duration,
}

/// Why a relay went back to the settled cursor within its term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RewindReason {
    /// Kafka did not answer, or not in a way that says what it kept.
    Outage,
    /// A message failed in company and was to be tried alone.
    TriedAlone,
}

impl RewindReason {
    /// The word that is stored.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Outage => "outage",
            Self::TriedAlone => "tried alone",
        }
    }
}

/// Messages that were perhaps published and will be published again within a term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rewound {
    /// Why.
    pub reason: RewindReason,
    /// The first of them.
    pub first: Seq,
    /// The last of them.
    pub last: Seq,
    /// How many they are.
    pub messages: u64,
}

/// The database that holds the outbox, as upkeep needs it.
pub trait Upkeep: Send + Sync + 'static {
    /// Measures what is undelivered. Works for a standby too.
    ///
    /// # Errors
    /// [`OutboxError::Unavailable`].
    fn backlog(&self) -> impl Future<Output = Result<Backlog, OutboxError>> + Send;

    /// Deletes one small step of what is dispatched and old; never anything undelivered or held.
    ///
    /// # Errors
    /// [`OutboxError::Unavailable`].
    fn purge(&self, limit: PurgeLimit) -> impl Future<Output = Result<Purged, OutboxError>> + Send;

    /// Compares the next messages that the cursor has passed, at most `rows`, with what became of them: a receipt, a hold, a time
    /// that has not come, an operator's decision. What nothing has become of is stranded. It is held, due at once, with the
    /// reason `stranded`, under the topic that `routes` lead to, and counts as an operator's action, so that its key is counted
    /// again.
    ///
    /// Where receipts were purged, messages that are older than those that are left prove nothing and are passed over.
    ///
    /// # Errors
    /// [`OutboxError::Fenced`] if the term is over.
    fn sweep(
        &self,
        term: Term,
        rows: u32,
        routes: &Routes,
    ) -> impl Future<Output = Result<Swept, OutboxError>> + Send;

    /// Keeps, for people, that messages may have been published twice within the term.
    ///
    /// # Errors
    /// [`OutboxError::Unavailable`].
    fn remember_rewind(
        &self,
        term: Term,
        rewound: &Rewound,
    ) -> impl Future<Output = Result<(), OutboxError>> + Send;
}
