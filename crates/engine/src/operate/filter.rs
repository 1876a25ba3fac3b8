//! Which held messages an operator means, and how a great many of them are acted on.

use std::time::Duration;

use outboxd_core::{HoldReason, HoldState, KeyHash, Seq, TopicPattern};
use uuid::Uuid;

/// Which held messages are meant. Empty: all of them.
#[derive(Clone, Debug, Default)]
pub struct HeldFilter {
    /// Message id.
    pub id: Option<Uuid>,
    /// Topic.
    pub topic: Option<TopicPattern>,
    /// Hash of topic and key.
    pub key_hash: Option<KeyHash>,
    /// State.
    pub state: Option<HoldState>,
    /// Reason.
    pub reason: Option<HoldReason>,
    /// Held for at least so long, by the database's clock.
    pub older_than: Option<Duration>,
    /// Held for less than this, by the database's clock.
    pub younger_than: Option<Duration>,
    /// At most so many, ascending by `seq`; 0 means all.
    pub limit: u32,
}

/// How many held messages a filter means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeldMatch {
    /// How many.
    pub messages: u64,
    /// How many of them wait behind another one: a retry leaves them to follow it.
    pub behind: u64,
    /// The last of them. What is held later is not meant.
    pub last: Option<Seq>,
}

/// What is done to many messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BulkAction {
    /// Make due now. Only those that wait behind no other: their followers go after them.
    Retry,
    /// Give up for good.
    Discard,
}

impl BulkAction {
    /// The word of the audit.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Discard => "discard",
        }
    }
}

/// Messages that are still to be acted on: above `above`, up to `up_to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldSpan {
    /// Not this one.
    pub above: Seq,
    /// This one too.
    pub up_to: Seq,
}

impl HeldSpan {
    /// Everything up to there.
    #[must_use]
    pub fn up_to(last: Seq) -> Self {
        Self { above: Seq(i64::MIN), up_to: last }
    }

    /// What is left after a step that came to `reached`. A retry begins with the oldest. A discard begins with the newest, because
    /// a head that went first would let its followers go before their turn to be discarded has come.
    #[must_use]
    pub fn after(self, action: BulkAction, reached: Seq) -> Self {
        match action {
            BulkAction::Retry => Self { above: reached, ..self },
            BulkAction::Discard => Self { up_to: Seq(reached.0.saturating_sub(1)), ..self },
        }
    }
}

/// One step of a bulk action: one transaction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeldStep {
    /// Messages that the filter means and that this step has looked at.
    pub found: u64,
    /// Those that were acted on.
    pub done: u64,
    /// Where the step came to; `None`: there was nothing.
    pub reached: Option<Seq>,
}
