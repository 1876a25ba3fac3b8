//! Making an outbox right that was restored, copied or moved: what operators ask with `outboxd rebase`.
//!
//! The settled cursor speaks of one history: of one database cluster, one sequence, one Kafka cluster. A rebase keeps what the cursor
//! says of each message and says it again in the words of the place where the outbox is now.

use std::future::Future;

use serde::Serialize;

use crate::operate::AuditedAction;
use crate::outbox::OutboxError;

/// How many messages a rebase speaks of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RebaseFigures {
    /// Above the cursor: published as they would have been.
    pub above_cursor: u64,
    /// At or below the cursor, and not dealt with by it: published before everything else.
    pub late: u64,
    /// At or below the cursor, dealt with by it, and without a receipt, a hold or an operator's decision: published with the late.
    pub unaccounted: u64,
    /// Dealt with: not published again.
    pub dealt_with: u64,
    /// Set aside: they stay so.
    pub held: u64,
    /// Waiting for their time: they stay so.
    pub scheduled: u64,
    /// Dealt with, and marked so that no transaction number of this cluster brings them back.
    pub marked: u64,
}

/// What a rebase found, and what it does or did about it.
#[derive(Clone, Debug, Serialize)]
pub struct RebasePlan {
    /// Whether it was done.
    pub done: bool,
    /// Number of the audit's row; `None` until it is done.
    pub operation: Option<i64>,
    /// The cursor as it was.
    pub cursor_before: String,
    /// The cursor as it is now; `None` until it is done.
    pub cursor_after: Option<String>,
    /// The database cluster that the cursor was settled in, if it has one and knows.
    pub settled_in: Option<String>,
    /// This database cluster, if it has a name.
    pub this_cluster: Option<String>,
    /// The Kafka cluster that the outbox was published to: forgotten, so that the next relay's is remembered.
    pub kafka_cluster: Option<String>,
    /// Where the sequence of messages stands, if that is too low.
    pub sequence_at: Option<i64>,
    /// Where it is set to then.
    pub sequence_to: Option<i64>,
    /// How many messages.
    pub figures: RebaseFigures,
}

/// What operators ask of an outbox that was restored, copied or moved.
pub trait Rebase: Send + Sync {
    /// Says what [`Rebase::rebase`] would do. Locks nothing and changes nothing.
    ///
    /// # Errors
    /// [`OutboxError`].
    fn rebase_plan(&self) -> impl Future<Output = Result<RebasePlan, OutboxError>> + Send;

    /// Makes the outbox right, in one audited transaction. Writers wait for it.
    ///
    /// # Errors
    /// [`OutboxError::Refused`] while a relay leads, or if this role may not.
    fn rebase(&self, action: &AuditedAction) -> impl Future<Output = Result<RebasePlan, OutboxError>> + Send;
}
