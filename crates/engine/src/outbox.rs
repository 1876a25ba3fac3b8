//! The port to the database that holds the outbox.
//!
//! Contract, executed by the conformance suite in `outboxd-testkit`:
//!
//! - Methods take `&self` and may run at the same time; an adapter gives each role (lead, read, durable, the rest) a
//!   session of its own. Every call has a deadline; a call that is dropped half-way costs its session and nothing else.
//! - Memory is valid only on the server incarnation it was read from. When any session of the term is lost, or a page comes
//!   from another incarnation than the lead session's, the call fails with [`OutboxError::Unavailable`]; the engine then
//!   drops everything, calls [`Outbox::step_down`] and leads again.
//! - [`Outbox::settle`] is one statement, fenced by epoch and nonce, that compares and swaps the cursor.
//!
//! What is done beside the path is [`Upkeep`]; what is published again on purpose, [`Replays`].

use std::fmt::Write as _;
use std::future::Future;
use std::time::Duration;

use outboxd_core::{Cursor, Hold, KeyHash, Message, Page, ReceiptEntry, Scheduled, Seq};
use uuid::Uuid;

use crate::replays::Replays;
use crate::upkeep::Upkeep;

/// Why a call to the outbox failed.
#[derive(Debug, thiserror::Error)]
pub enum OutboxError {
    /// The database did not answer, or not in time, or the session was lost. Try again later; costs no attempt.
    #[error("{doing}")]
    Unavailable {
        /// What was being done: "settle page".
        doing: &'static str,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Another relay has led since: whatever this one knows is void.
    #[error("another relay has taken the lead: this epoch is fenced")]
    Fenced,
    /// The outbox cannot be served until somebody acts; the text says who and how.
    #[error("{finding}; {remedy}")]
    Refused {
        /// What is wrong.
        finding: String,
        /// What to do about it.
        remedy: String,
    },
}

impl OutboxError {
    /// An [`OutboxError::Unavailable`] with its cause.
    pub fn unavailable(
        doing: &'static str,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Unavailable { doing, source: source.into() }
    }
}

/// A term of leadership.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Term {
    /// Counts leaders; every settle names it.
    pub epoch: i64,
    /// Random, so that a crash that takes an epoch back cannot make two leaders alike.
    pub nonce: Uuid,
    /// Call [`Outbox::keep`] at least this often, or the database ends the lead session.
    pub keep_every: Duration,
}

/// Where dispatching starts: read after the epoch was taken.
#[derive(Clone, Debug)]
pub struct Start {
    /// The settled cursor.
    pub cursor: Cursor,
    /// Held messages per key, of messages that have a key.
    pub held: Vec<HeldCount>,
    /// Number of the last operator action that is reflected in `held`.
    pub actions: i64,
    /// The Kafka cluster that this outbox is published to; `None` until a relay has reached one.
    pub kafka_cluster: Option<String>,
    /// Terms in a row before this one that ended with neither a settle that proved them nor an orderly end.
    pub terms_unsettled: u32,
    /// The attempt that was noted last and has not finished.
    pub trial: Option<Trial>,
    /// Whether the message of `trial` is held.
    pub trial_is_held: bool,
}

/// Attempts to publish a message that were started and, as far as the database knows, not finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trial {
    /// The message.
    pub seq: Seq,
    /// Attempts.
    pub trials: u32,
}

/// How many messages of a key are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldCount {
    /// The key.
    pub key_hash: KeyHash,
    /// Held messages, at least one.
    pub messages: u32,
}

/// How much a page may hold. A page always holds at least one message if there is one.
#[derive(Clone, Copy, Debug)]
pub struct PageLimit {
    /// Messages.
    pub messages: u32,
    /// Bytes of payload, key and headers.
    pub bytes: u64,
}

/// Up to where the database's log must be on disk before what was read may be published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DurabilityMark(pub u64);

/// A page and the mark that must be durable before it is published. `None`: what is visible is durable.
#[derive(Debug)]
pub struct ReadPage {
    /// The page.
    pub page: Page,
    /// Its mark.
    pub mark: Option<DurabilityMark>,
    /// Whether another page is likely to be there already: this one was full, or cut short by bytes.
    pub more: bool,
}

/// One fenced write: the cursor moves from `before` to `after`, together with everything that happened on the way.
#[derive(Debug)]
pub struct Settlement {
    /// The leader's term.
    pub term: Term,
    /// The settled cursor that the database must still hold.
    pub before: Cursor,
    /// The cursor to store. Equal to `before` if only held messages are settled.
    pub after: Cursor,
    /// Receipts of messages above `before.high`, ascending by `seq`.
    pub receipts: Vec<ReceiptEntry>,
    /// Receipts of late and of released messages, ascending by `seq`: kept apart because their range overlaps others.
    pub receipts_out_of_order: Vec<ReceiptEntry>,
    /// Messages to set aside: inserted, or updated if they are held already (a release that failed again). The key that a row
    /// holds back may go with an update, and what waited behind it is unblocked then.
    pub holds: Vec<Hold>,
    /// Held messages that were dispatched: their rows go.
    pub released: Vec<Seq>,
    /// The attempt to be noted as started; `None`: none is.
    pub trial: Option<Trial>,
    /// Whether this term has got on: the count of unsettled terms begins anew.
    pub proves_term: bool,
    /// Messages whose time has not come: kept until then, by what the intent says.
    pub scheduled: Vec<Scheduled>,
}

/// What has changed among the held messages; cheap enough to ask a few times a second.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeldSignal {
    /// Number of held messages, all states, and of scheduled ones; an adapter may stop counting early, what matters is whether
    /// there are any.
    pub messages: u64,
    /// Whether any message is due now: state `retry` or `topic`, due time reached, topic not among those excluded; or scheduled
    /// and its time has come.
    pub due: bool,
    /// Keys whose held messages are all in state `behind`: nothing blocks them any longer. At most 10,000.
    pub unblocked: Vec<KeyHash>,
    /// Number of the last operator action.
    pub actions: i64,
}

/// Which held messages to release.
#[derive(Clone, Debug)]
pub struct ReleaseQuery {
    /// The leader's term.
    pub term: Term,
    /// Topics known not to be writable: their messages stay.
    pub topics_held: Vec<String>,
    /// Keys whose followers may go: `behind` counts as due for them.
    pub unblocked: Vec<KeyHash>,
    /// At most so many.
    pub limit: PageLimit,
}

/// A held message that may be published now.
#[derive(Clone, Debug)]
pub struct Due {
    /// The message.
    pub message: Message,
    /// Attempts charged so far. A message with any is published with nothing else in flight, and its key waits for the
    /// answer.
    pub attempts: u32,
    /// The key that its row holds back: the one that it was set aside with.
    pub key_hash: Option<KeyHash>,
}

/// Held messages whose count per key was read again.
#[derive(Clone, Debug)]
pub struct HeldChange {
    /// Held messages per key.
    pub held: Vec<HeldCount>,
    /// Number of the last operator action that is reflected in `held`.
    pub actions: i64,
}

/// What may be published now, and what has changed with it.
#[derive(Clone, Debug, Default)]
pub struct Release {
    /// Messages, ascending by `seq`.
    pub due: Vec<Due>,
    /// The counts per key, read again because an operator has acted.
    pub change: Option<HeldChange>,
    /// The key of each scheduled message that has become a held one, as often as there are such messages. Included in the
    /// counts of `change`.
    pub promoted: Vec<KeyHash>,
}

/// The database that holds the outbox, as the loop needs it.
pub trait Outbox: Upkeep + Replays {
    /// Tries to take the lead: verifies the outbox (schema version, server not in recovery, same cluster as the cursor),
    /// takes the liveness lock, then bumps the epoch and the count of unsettled terms in a synchronous commit. `None`: another
    /// relay leads.
    ///
    /// # Errors
    /// [`OutboxError::Refused`] if an operator must act, [`OutboxError::Unavailable`] otherwise.
    fn lead(&self) -> impl Future<Output = Result<Option<Term>, OutboxError>> + Send;

    /// Reads the settled cursor and the held keys, on the lead session. Also called within a term, to go back to the
    /// settled cursor after an outage.
    ///
    /// # Errors
    /// [`OutboxError::Fenced`] if the term is over.
    fn start(&self, term: Term) -> impl Future<Output = Result<Start, OutboxError>> + Send;

    /// Keeps the lead session alive and finds out whether it still is.
    ///
    /// # Errors
    /// Any: the term is over.
    fn keep(&self, term: Term) -> impl Future<Output = Result<(), OutboxError>> + Send;

    /// Reads the page after the cursor, in one statement.
    ///
    /// # Errors
    /// [`OutboxError::Refused`] if the page shows that the cursor belongs to another cluster.
    fn read(
        &self,
        from: &Cursor,
        limit: PageLimit,
    ) -> impl Future<Output = Result<ReadPage, OutboxError>> + Send;

    /// Returns once everything up to the mark is on the database's disk.
    ///
    /// # Errors
    /// [`OutboxError::Unavailable`]: what was read up to the mark must be forgotten.
    fn durable(&self, mark: DurabilityMark) -> impl Future<Output = Result<(), OutboxError>> + Send;

    /// Settles, on the lead session. All of it or nothing.
    ///
    /// # Errors
    /// [`OutboxError::Fenced`] if the term is over or the stored cursor is not `before`.
    fn settle(&self, settlement: Settlement) -> impl Future<Output = Result<(), OutboxError>> + Send;

    /// Says whether held messages need the loop's attention.
    ///
    /// # Errors
    /// [`OutboxError::Unavailable`].
    fn held(&self, topics_held: &[String]) -> impl Future<Output = Result<HeldSignal, OutboxError>> + Send;

    /// First makes scheduled messages whose time has come held ones: due, or behind what is held of their key; those that
    /// were cancelled go into the audit instead. Then reads held messages that may be published now, ascending by `seq`: due, and
    /// with no earlier held message of their key that is parked, not yet due, or has attempts charged. Also reads the
    /// counts per key again if an operator has acted after `actions`.
    ///
    /// What is made a held message is made so before the term's next [`Outbox::start`] counts, also if this call is dropped.
    ///
    /// # Errors
    /// [`OutboxError::Fenced`] if the term is over, [`OutboxError::Unavailable`].
    fn due(
        &self,
        query: &ReleaseQuery,
        actions: i64,
    ) -> impl Future<Output = Result<Release, OutboxError>> + Send;

    /// Remembers the Kafka cluster that this outbox is published to, unless one is remembered already. Asked before anything is
    /// published, because the first record may be one too many.
    ///
    /// # Errors
    /// [`OutboxError::Fenced`] if the term is over.
    fn remember_kafka(
        &self,
        term: Term,
        cluster: &str,
    ) -> impl Future<Output = Result<(), OutboxError>> + Send;

    /// Closes every session, giving up the lock. A term that ends here has ended in order: it no longer counts as unsettled, if the
    /// database can be told. Never fails: what cannot be closed is dropped.
    fn step_down(&self) -> impl Future<Output = ()> + Send;
}

/// An error and its causes on one line: "settle page: connect to database: connection refused".
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        // Writing to a String cannot fail.
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    text
}
