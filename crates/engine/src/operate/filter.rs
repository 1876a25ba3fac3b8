//! Which held messages an operator means, and how a great many of them are acted on.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use outboxd_core::{HoldReason, HoldState, KeyHash, Seq};
use uuid::Uuid;

/// A topic's name, in which `*` stands for any characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicPattern(String);

/// Not a pattern.
#[derive(Debug, thiserror::Error)]
#[error("expected the name of a topic, of a-z A-Z 0-9 . _ -, in which * stands for any characters")]
pub struct TopicPatternError;

impl FromStr for TopicPattern {
    type Err = TopicPatternError;

    fn from_str(text: &str) -> Result<Self, TopicPatternError> {
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b'*');
        // Nothing that a pattern of SQL would take for something else, but the underscore.
        if text.is_empty() || !text.bytes().all(legal) {
            return Err(TopicPatternError);
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for TopicPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TopicPattern {
    /// As SQL's `GLOB` has it.
    #[must_use]
    pub fn glob(&self) -> &str {
        &self.0
    }

    /// As SQL's `LIKE` has it, escaped with a backslash.
    #[must_use]
    pub fn like(&self) -> String {
        self.0.replace('_', "\\_").replace('*', "%")
    }

    /// The name, if it is one.
    #[must_use]
    pub fn exact(&self) -> Option<&str> {
        (!self.0.contains('*')).then_some(&self.0)
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_takes_an_underscore_for_itself_and_a_star_for_anything() {
        let pattern: TopicPattern = "a_b.*".parse().unwrap();
        assert_eq!((pattern.like().as_str(), pattern.glob()), ("a\\_b.%", "a_b.*"));
        assert_eq!(pattern.exact(), None);
        assert_eq!("orders".parse::<TopicPattern>().unwrap().exact(), Some("orders"));
        for wrong in ["", "a b", "a?", "[a]", "a%", "a\\", "ä"] {
            assert!(wrong.parse::<TopicPattern>().is_err(), "{wrong}");
        }
    }
}
