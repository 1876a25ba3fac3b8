//! What a database knows of intents, as the adapters report it.
//!
//! Adapters return these as JSON made by the database itself, one object a fact, so that one statement can answer several
//! questions about one moment and both adapters are read by the same code.

use outboxd_core::{HoldReason, HoldState, Seq};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

/// An intent without key, payload and headers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Intent {
    /// Place in the outbox.
    pub seq: Seq,
    /// Message id.
    pub id: Uuid,
    /// The transaction that wrote it; `None` where transactions have no numbers.
    #[serde(default)]
    pub xid: Option<String>,
    /// Topic, as the intent names it.
    pub topic: String,
    /// Explicit partition.
    pub partition: Option<i32>,
    /// Media type of the payload.
    pub content_type: Option<String>,
    /// Correlation id.
    pub correlation_id: String,
    /// What caused it: the id of a message, or whatever the application wrote.
    pub causation_id: Option<String>,
    /// W3C trace context.
    pub traceparent: Option<String>,
    /// Idempotency key.
    pub idempotency_key: Option<String>,
    /// When it was written.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// Not to be delivered before.
    #[serde(with = "time::serde::rfc3339::option", default)]
    pub deliver_after: Option<OffsetDateTime>,
    /// Whether it has a key.
    pub keyed: bool,
    /// Payload size; `None` for a tombstone.
    pub payload_bytes: Option<u64>,
}

/// A failed attempt as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Failed {
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// What Kafka said.
    pub error: String,
}

/// The first held message of a key.
#[derive(Clone, Debug, Deserialize)]
pub struct Head {
    /// Its place.
    pub seq: Seq,
    /// Its id.
    pub id: Uuid,
    /// What it waits for.
    pub state: HoldState,
    /// Why it is held.
    pub reason: HoldReason,
}

/// One thing that is known of an intent.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fact {
    /// Where it stands before the cursor.
    Place(PlaceBefore),
    /// It is held.
    Held(HeldNow),
    /// It was held.
    WasHeld(WasHeld),
    /// Somebody acted on it.
    Action(Action),
    /// It waits for its time.
    Scheduled(Waiting),
    /// It was taken back.
    Cancelled(TakenBack),
    /// A term that ended without a word.
    Term(SilentTerm),
    /// A relay that went back to the settled cursor.
    Rewind(RewindNoted),
}

/// Where an intent stands before the cursor.
#[derive(Clone, Debug, Deserialize)]
pub struct PlaceBefore {
    /// The intent.
    pub seq: Seq,
    /// Whether the cursor has dealt with it.
    pub dealt_with: bool,
    /// Whether it was committed after the cursor had passed its place.
    pub late: bool,
    /// How many undelivered messages stand before it; `None`: more than are counted.
    pub before: Option<u64>,
}

/// A hold.
#[derive(Clone, Debug, Deserialize)]
pub struct HeldNow {
    /// The intent.
    pub seq: Seq,
    /// Its topic at Kafka.
    pub topic: String,
    /// What it waits for.
    pub state: HoldState,
    /// Why.
    pub reason: HoldReason,
    /// What the last attempt said.
    pub error: Option<String>,
    /// Attempts charged.
    pub attempts: u32,
    /// Failed attempts, the last ten.
    pub failures: Vec<Failed>,
    /// When it is tried again.
    #[serde(with = "time::serde::rfc3339::option", default)]
    pub due_at: Option<OffsetDateTime>,
    /// Since when.
    #[serde(with = "time::serde::rfc3339")]
    pub held_at: OffsetDateTime,
    /// Where the copy of a parked message is.
    pub dead_letter: Option<String>,
    /// The first held message of its key, if that is another one.
    pub head: Option<Head>,
}

/// A hold that ended.
#[derive(Clone, Debug, Deserialize)]
pub struct WasHeld {
    /// The intent.
    pub seq: Seq,
    /// What it waited for at last.
    pub state: HoldState,
    /// Why, at last.
    pub reason: HoldReason,
    /// Attempts charged.
    pub attempts: u32,
    /// Failed attempts, the last ten.
    pub failures: Vec<Failed>,
    /// Since when.
    #[serde(with = "time::serde::rfc3339")]
    pub held_at: OffsetDateTime,
    /// Until when.
    #[serde(with = "time::serde::rfc3339")]
    pub ended_at: OffsetDateTime,
    /// Where the copy of the parked message is.
    pub dead_letter: Option<String>,
}

/// A line of the audit.
#[derive(Clone, Debug, Deserialize)]
pub struct Action {
    /// The intent.
    pub seq: Seq,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// What: retry, discard, edit, cancel, sweep.
    pub kind: String,
    /// Who.
    pub who: String,
    /// Why.
    pub why: String,
    /// What exactly.
    #[serde(default)]
    pub details: Option<serde_json::Value>,
}

/// A message that waits for its time.
#[derive(Clone, Debug, Deserialize)]
pub struct Waiting {
    /// The intent.
    pub seq: Seq,
    /// Its time.
    #[serde(with = "time::serde::rfc3339")]
    pub due_at: OffsetDateTime,
    /// Since when the relay knows.
    #[serde(with = "time::serde::rfc3339")]
    pub scheduled_at: OffsetDateTime,
}

/// A cancellation.
#[derive(Clone, Debug, Deserialize)]
pub struct TakenBack {
    /// The intent.
    pub seq: Seq,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub cancelled_at: OffsetDateTime,
    /// Who.
    pub who: String,
    /// Why.
    pub why: String,
}

/// A term that ended without a word, and where the next one began.
#[derive(Clone, Debug, Deserialize)]
pub struct SilentTerm {
    /// Its epoch.
    pub epoch: i64,
    /// Its relay.
    pub relay: String,
    /// When it began.
    #[serde(with = "time::serde::rfc3339")]
    pub led_at: OffsetDateTime,
    /// When the next one began.
    #[serde(with = "time::serde::rfc3339")]
    pub next_led_at: OffsetDateTime,
    /// The cursor then: what is above it was read again.
    pub next_high: Seq,
}

/// A return to the settled cursor within a term.
#[derive(Clone, Debug, Deserialize)]
pub struct RewindNoted {
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// In which term.
    pub epoch: i64,
    /// Which relay.
    pub relay: Option<String>,
    /// Why.
    pub reason: String,
    /// From here,
    pub seq_first: Seq,
    /// to here,
    pub seq_last: Seq,
    /// so many of them.
    pub messages: u64,
}

/// The outbox at the moment of the question.
#[derive(Clone, Debug, Deserialize)]
pub struct Standing {
    /// The database's clock.
    #[serde(with = "time::serde::rfc3339")]
    pub now: OffsetDateTime,
    /// Epoch of the last leader.
    pub epoch: i64,
    /// The last leader.
    pub relay: Option<String>,
    /// When it took the lead.
    #[serde(with = "time::serde::rfc3339::option", default)]
    pub led_at: Option<OffsetDateTime>,
    /// When something was settled last.
    #[serde(with = "time::serde::rfc3339::option", default)]
    pub settled_at: Option<OffsetDateTime>,
    /// Whether a relay leads now.
    pub alive: bool,
    /// When the last term ended in order; `None`: it did not, or it goes on.
    #[serde(with = "time::serde::rfc3339::option", default)]
    pub ended_at: Option<OffsetDateTime>,
    /// Receipts of before this time may have been purged; `None`: there are none at all.
    #[serde(with = "time::serde::rfc3339::option", default)]
    pub receipts_since: Option<OffsetDateTime>,
    /// When a relay last went back to the settled cursor because Kafka did not answer.
    #[serde(with = "time::serde::rfc3339::option", default)]
    pub outage_at: Option<OffsetDateTime>,
    /// Names of the indexes that are there for [`crate::trace::By`].
    pub indexes: Vec<String>,
    /// Size of the table of intents.
    pub table_bytes: u64,
}

/// What became of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum XidStatus {
    /// It runs.
    #[serde(rename = "in progress")]
    InProgress,
    /// It was committed.
    Committed,
    /// It was rolled back.
    Aborted,
    /// It has not begun.
    Future,
    /// It is so long ago that the database has forgotten it.
    Forgotten,
}

/// A transaction that is open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenTransaction {
    /// Its number.
    pub xid: String,
    /// The backend that runs it; `None`: it is prepared.
    pub backend: Option<i32>,
    /// What the application calls itself.
    pub application: Option<String>,
    /// The role.
    pub role: Option<String>,
    /// Since when; `None`: the reader may not see it.
    #[serde(with = "time::serde::rfc3339::option", default)]
    pub since: Option<OffsetDateTime>,
    /// What it does: active, idle in transaction; `None`: the reader may not see it.
    pub state: Option<String>,
    /// The name under which it was prepared (two-phase commit).
    pub prepared: Option<String>,
    /// Whether it has written to the outbox.
    pub writes_outbox: bool,
}

/// What the database says of transactions.
#[derive(Clone, Debug, Deserialize)]
pub struct Transactions {
    /// What became of the one that was asked for.
    #[serde(default)]
    pub status: Option<XidStatus>,
    /// That one, if it is open, and those that have written to the outbox.
    pub open: Vec<OpenTransaction>,
}

/// A replay that made copies.
#[derive(Clone, Debug, Deserialize)]
pub struct ReplayAsked {
    /// Its number.
    pub replay: i64,
    /// Who.
    pub who: String,
    /// Why.
    pub why: String,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub requested_at: OffsetDateTime,
    /// Where to, if elsewhere.
    pub to_topic: Option<String>,
}

/// What a consumer's inbox says of a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The message.
    pub id: Uuid,
    /// The consumer.
    pub consumer: String,
    /// When its transaction claimed the message.
    #[serde(with = "time::serde::rfc3339")]
    pub claimed_at: OffsetDateTime,
    /// The copy that took effect, as far as the consumer said.
    pub topic: Option<String>,
    /// Its partition.
    pub partition: Option<i32>,
    /// Its offset.
    pub record_offset: Option<i64>,
    /// Copies that came afterwards and changed nothing.
    pub duplicates: u64,
    /// When the last of them came.
    #[serde(with = "time::serde::rfc3339::option", default)]
    pub last_duplicate_at: Option<OffsetDateTime>,
}

/// Key, headers and payload of an intent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contents {
    /// The intent.
    pub seq: Seq,
    /// Key.
    pub key: Option<String>,
    /// The intent's own headers.
    pub headers: Option<serde_json::Value>,
    /// Payload; `None` is a tombstone.
    pub payload: Option<Vec<u8>>,
}
