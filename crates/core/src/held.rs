//! Messages set aside: why, until when, and which keys wait behind them.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::message::{Message, Seq};
use crate::record::Refusal;

/// What a held message waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HoldState {
    /// Its own next attempt, at its due time.
    Retry,
    /// Its topic.
    Topic,
    /// An earlier held message of its key.
    Behind,
    /// An operator.
    Parked,
}

impl HoldState {
    /// The word used in tables, metrics and the CLI.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Topic => "topic",
            Self::Behind => "behind",
            Self::Parked => "parked",
        }
    }

    /// The state of that word.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Retry, Self::Topic, Self::Behind, Self::Parked]
            .into_iter()
            .find(|state| state.as_str() == word)
    }
}

/// Why a message is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HoldReason {
    /// The topic does not exist.
    TopicUnknown,
    /// The relay may not write to the topic.
    TopicUnauthorized,
    /// Waits behind an earlier held message of its key.
    Behind,
    /// An error that is not understood; tried again.
    UnknownError,
    /// Too large for the topic.
    TooLarge,
    /// The broker does not accept the record.
    InvalidRecord,
    /// The explicit partition does not exist.
    NoSuchPartition,
    /// A header name is not acceptable.
    BadHeader,
    /// The topic's name is not acceptable.
    IllegalTopic,
    /// The topic is not among those that intents may name.
    TopicNotAllowed,
    /// A tombstone without a key.
    TombstoneWithoutKey,
    /// The client library refused the record.
    RefusedByClient,
    /// Every attempt was used.
    AttemptsExhausted,
    /// The cursor had passed it and nobody had delivered it: found by the sweep.
    Stranded,
    /// The relay's process ended each time it was published.
    CrashesRelay,
    /// Its time has come and it is on its way.
    Scheduled,
}

impl HoldReason {
    /// Every reason, in the order of the documentation.
    pub const ALL: [Self; 16] = [
        Self::TopicUnknown,
        Self::TopicUnauthorized,
        Self::Behind,
        Self::UnknownError,
        Self::TooLarge,
        Self::InvalidRecord,
        Self::NoSuchPartition,
        Self::BadHeader,
        Self::IllegalTopic,
        Self::TopicNotAllowed,
        Self::TombstoneWithoutKey,
        Self::RefusedByClient,
        Self::AttemptsExhausted,
        Self::Stranded,
        Self::CrashesRelay,
        Self::Scheduled,
    ];

    /// The word used in tables, metrics and the CLI.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::TopicUnknown => "topic_unknown",
            Self::TopicUnauthorized => "topic_unauthorized",
            Self::Behind => "behind",
            Self::UnknownError => "unknown_error",
            Self::TooLarge => "too_large",
            Self::InvalidRecord => "invalid_record",
            Self::NoSuchPartition => "no_such_partition",
            Self::BadHeader => "bad_header",
            Self::IllegalTopic => "illegal_topic",
            Self::TopicNotAllowed => "topic_not_allowed",
            Self::TombstoneWithoutKey => "tombstone_without_key",
            Self::RefusedByClient => "refused_by_client",
            Self::AttemptsExhausted => "attempts_exhausted",
            Self::Stranded => "stranded",
            Self::CrashesRelay => "crashes_relay",
            Self::Scheduled => "scheduled",
        }
    }

    /// The reason of that word.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == word)
    }
}

impl From<&Refusal> for HoldReason {
    fn from(refusal: &Refusal) -> Self {
        match refusal {
            Refusal::TooLarge { .. } => Self::TooLarge,
            Refusal::NoSuchPartition { .. } => Self::NoSuchPartition,
            Refusal::BadHeader { .. } => Self::BadHeader,
            Refusal::IllegalTopic { .. } => Self::IllegalTopic,
            Refusal::TopicNotAllowed { .. } => Self::TopicNotAllowed,
            Refusal::TombstoneWithoutKey => Self::TombstoneWithoutKey,
            Refusal::Client { .. } => Self::RefusedByClient,
        }
    }
}

/// A short, stable hash of topic and key: what "the same key" means for held messages, and what logs show of a key.
///
/// FNV-1a, 64 bits. Two keys that share a hash wait for one another needlessly; nothing else depends on it being unique.
/// It is stored, so it never changes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyHash(pub u64);

impl KeyHash {
    /// The hash of a message's topic and key; `None` if it has no key and so no order.
    #[must_use]
    pub fn of(message: &Message) -> Option<Self> {
        message.key.as_ref().map(|key| Self::of_parts(&message.topic, key))
    }

    /// The hash of a topic and a key.
    #[must_use]
    pub fn of_parts(topic: &str, key: &str) -> Self {
        const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
        const PRIME: u64 = 0x0000_0100_0000_01b3;
        let bytes = topic.bytes().chain(std::iter::once(0)).chain(key.bytes());
        Self(bytes.fold(OFFSET, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(PRIME)))
    }

    /// The same 64 bits as the signed integer that databases store.
    #[must_use]
    pub fn to_i64(self) -> i64 {
        i64::from_ne_bytes(self.0.to_ne_bytes())
    }

    /// From the signed integer that databases store.
    #[must_use]
    pub fn from_i64(stored: i64) -> Self {
        Self(u64::from_ne_bytes(stored.to_ne_bytes()))
    }
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A message to be set aside. It is one narrow row: the payload stays where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    /// The message.
    pub seq: Seq,
    /// Its topic.
    pub topic: String,
    /// The hash of the key that it holds back; `None` if it has no key, or if its key goes on without it (`skip`).
    pub key_hash: Option<KeyHash>,
    /// What it waits for.
    pub state: HoldState,
    /// Why.
    pub reason: HoldReason,
    /// What the last attempt said; safe to show.
    pub error: Option<String>,
    /// Attempts charged so far.
    pub attempts: u32,
    /// When it is due, from the time of the settle. Meaningful for [`HoldState::Retry`].
    pub due_in: Duration,
    /// Where the copy of a parked message is: `topic[partition]@offset`.
    pub dead_letter: Option<String>,
}

/// A message whose time has not come, to be kept until then. It blocks nobody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scheduled {
    /// The message.
    pub seq: Seq,
    /// Its topic.
    pub topic: String,
    /// Its key's hash; `None` if it has no key.
    pub key_hash: Option<KeyHash>,
}
