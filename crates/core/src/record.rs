//! From message to record: the only place where headers are stamped and where a message is refused for its own sake
//! before a broker has seen it.

use bytes::Bytes;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::held::Hold;
use crate::message::Message;

/// Names that the relay stamps itself. An intent that brings one of them, or a name that starts with
/// [`RESERVED_PREFIX`], is refused where it is written; one that got through is refused here.
pub const RESERVED_HEADERS: [&str; 6] =
    ["id", "correlation-id", "causation-id", "content-type", "traceparent", "tracestate"];

/// Prefix of the relay's other header names.
pub const RESERVED_PREFIX: &str = "outbox-";

/// Every header that the relay stamps on a message.
pub const STAMPED_HEADERS: [&str; 7] =
    ["id", "correlation-id", "causation-id", "content-type", "traceparent", "tracestate", "outbox-time"];

/// The header of a copy that a replay has published: the replay's number.
pub const REPLAY_HEADER: &str = "outbox-replay-id";

/// What is handed to Kafka.
#[derive(Clone, PartialEq, Eq)]
pub struct Record {
    /// Topic.
    pub topic: String,
    /// Partition; `None` leaves it to the key.
    pub partition: Option<i32>,
    /// Key.
    pub key: Option<Bytes>,
    /// Payload; `None` is a tombstone.
    pub payload: Option<Bytes>,
    /// Headers in the order in which they are written, raw UTF-8.
    pub headers: Vec<(&'static str, Bytes)>,
    /// Aliases of our headers and the intent's own, after ours.
    pub own_headers: Vec<(String, String)>,
}

impl std::fmt::Debug for Record {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Record")
            .field("topic", &self.topic)
            .field("partition", &self.partition)
            .field("size_bytes", &self.size_bytes())
            .finish_non_exhaustive()
    }
}

impl Record {
    /// An upper estimate of the record's size in a batch of its own, in bytes: contents, a varint each, and the batch
    /// header (Kafka protocol, record batch format v2).
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        const BATCH_HEADER: usize = 61;
        const RECORD_OVERHEAD: usize = 21;
        const HEADER_OVERHEAD: usize = 6;
        let ours: usize =
            self.headers.iter().map(|(name, value)| HEADER_OVERHEAD + name.len() + value.len()).sum();
        let own: usize =
            self.own_headers.iter().map(|(name, value)| HEADER_OVERHEAD + name.len() + value.len()).sum();
        BATCH_HEADER
            + RECORD_OVERHEAD
            + self.key.as_ref().map_or(0, Bytes::len)
            + self.payload.as_ref().map_or(0, Bytes::len)
            + ours
            + own
    }
}

/// What the relay knows of a topic that exists and that it may write to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TopicInfo {
    /// Number of partitions.
    pub partitions: i32,
    /// Largest record batch that the topic takes, in bytes.
    pub max_message_bytes: usize,
}

/// Why a message can never be accepted as it is. The text is safe to log: it holds no application data beyond names.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Larger than the topic takes.
    #[error("record of {size_bytes} bytes is larger than the topic's max.message.bytes of {limit_bytes}")]
    TooLarge {
        /// Size of the record in a batch of its own.
        size_bytes: usize,
        /// The topic's limit.
        limit_bytes: usize,
    },
    /// The explicit partition does not exist.
    #[error("partition {partition} does not exist: the topic has {partitions}")]
    NoSuchPartition {
        /// As written.
        partition: i32,
        /// What the topic has.
        partitions: i32,
    },
    /// A header name that Kafka or the relay does not take.
    #[error("header name {name:?} is empty, longer than 256 bytes, or reserved for the relay")]
    BadHeader {
        /// The name, shortened.
        name: String,
    },
    /// The topic's name is not one that Kafka takes, or is internal.
    #[error("topic name {topic:?} is illegal: 1 to 249 of a-z A-Z 0-9 . _ -, not starting with __")]
    IllegalTopic {
        /// The name, shortened.
        topic: String,
    },
    /// The configuration does not let intents name this topic.
    #[error("topic {topic:?} is not among relay.topics_allowed")]
    TopicNotAllowed {
        /// The name, shortened.
        topic: String,
    },
    /// A tombstone without a key deletes nothing.
    #[error("a tombstone (no payload) needs a key")]
    TombstoneWithoutKey,
    /// librdkafka refused the record before it was queued.
    #[error("the client refused the record: {code}")]
    Client {
        /// librdkafka's name for the error.
        code: String,
    },
}

/// Whether a topic's name is one that the relay publishes to: legal in Kafka and not internal (`__...`).
#[must_use]
pub fn topic_is_legal(topic: &str) -> bool {
    (1..=249).contains(&topic.len())
        && topic != "."
        && topic != ".."
        && !topic.starts_with("__")
        && topic.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}

/// Turns a message into the record that is published, or says why it never can be. `aliases`: headers that are sent under another
/// name too.
///
/// Pure: the same message and topic give the same record, so a repeated copy is identical to the first.
///
/// # Errors
/// [`Refusal`] if the message is refused for its own sake. Nothing was handed to Kafka then.
pub fn route(
    message: &Message,
    topic: TopicInfo,
    aliases: &[(&'static str, String)],
) -> Result<Record, Refusal> {
    routed(message, stamp(message), topic, aliases)
}

/// As [`route`], for a copy that replay `number` publishes: [`REPLAY_HEADER`] says so, and everything else is as it was.
///
/// # Errors
/// As [`route`].
pub fn replayed(
    message: &Message,
    number: i64,
    topic: TopicInfo,
    aliases: &[(&'static str, String)],
) -> Result<Record, Refusal> {
    let mut headers = stamp(message);
    headers.push((REPLAY_HEADER, Bytes::from(number.to_string())));
    routed(message, headers, topic, aliases)
}

fn routed(
    message: &Message,
    headers: Vec<(&'static str, Bytes)>,
    topic: TopicInfo,
    aliases: &[(&'static str, String)],
) -> Result<Record, Refusal> {
    if message.payload.is_none() && message.key.is_none() {
        return Err(Refusal::TombstoneWithoutKey);
    }
    if let Some(partition) = message.partition
        && !(0..topic.partitions).contains(&partition)
    {
        return Err(Refusal::NoSuchPartition { partition, partitions: topic.partitions });
    }
    if let Some((name, _)) = message.headers.iter().find(|(name, _)| !own_header_is_legal(name)) {
        return Err(Refusal::BadHeader { name: shortened(name) });
    }
    let record = Record {
        topic: message.topic.clone(),
        partition: message.partition,
        key: message.key.as_ref().map(|key| Bytes::copy_from_slice(key.as_bytes())),
        payload: message.payload.clone(),
        own_headers: own_headers(&headers, aliases, message.headers.iter()),
        headers,
    };
    fits(record, topic)
}

fn fits(record: Record, topic: TopicInfo) -> Result<Record, Refusal> {
    let size_bytes = record.size_bytes();
    if size_bytes > topic.max_message_bytes {
        return Err(Refusal::TooLarge { size_bytes, limit_bytes: topic.max_message_bytes });
    }
    Ok(record)
}

/// What a parked message is copied to a dead-letter topic with.
#[derive(Clone, Copy, Debug)]
pub struct DeadLetter<'a> {
    /// The dead-letter topic.
    pub topic: &'a str,
    /// Why the message is parked; its topic is the one that the message was bound for.
    pub hold: &'a Hold,
    /// When it was parked.
    pub at: OffsetDateTime,
}

/// Turns a parked message into the record that its dead-letter topic gets: key, payload and headers as they would have been, and
/// what became of it in headers of its own. The partition is the key's. Headers that the message was refused for are left out: a
/// second `id` would deceive whoever reads it, and the intent still has them.
///
/// # Errors
/// [`Refusal::TooLarge`] if the topic does not take it.
pub fn dead_letter(
    message: &Message,
    letter: DeadLetter<'_>,
    topic: TopicInfo,
    aliases: &[(&'static str, String)],
) -> Result<Record, Refusal> {
    let hold = letter.hold;
    let mut headers = stamp(message);
    let facts = [
        ("outbox-dead-letter-reason", Some(hold.reason.as_str().to_owned())),
        ("outbox-dead-letter-error", hold.error.clone()),
        ("outbox-dead-letter-attempts", Some(hold.attempts.to_string())),
        ("outbox-dead-letter-topic", Some(hold.topic.clone())),
        ("outbox-dead-letter-partition", message.partition.map(|partition| partition.to_string())),
        ("outbox-dead-letter-time", letter.at.format(&Rfc3339).ok()),
    ];
    headers.extend(facts.into_iter().filter_map(|(name, value)| Some((name, Bytes::from(value?)))));
    let legal = message.headers.iter().filter(|(name, _)| own_header_is_legal(name));
    let record = Record {
        topic: letter.topic.to_owned(),
        partition: None,
        key: message.key.as_ref().map(|key| Bytes::copy_from_slice(key.as_bytes())),
        payload: message.payload.clone(),
        own_headers: own_headers(&headers, aliases, legal),
        headers,
    };
    fits(record, topic)
}

/// The aliases of stamped headers, then the intent's own.
fn own_headers<'a>(
    stamped: &[(&'static str, Bytes)],
    aliases: &[(&'static str, String)],
    own: impl Iterator<Item = &'a (String, String)>,
) -> Vec<(String, String)> {
    let value_of = |header: &str| {
        let (_, value) = stamped.iter().find(|(name, _)| *name == header)?;
        Some(String::from_utf8_lossy(value).into_owned())
    };
    let aliased = aliases.iter().filter_map(|(header, alias)| Some((alias.clone(), value_of(header)?)));
    aliased.chain(own.cloned()).collect()
}

/// The relay's own headers. `outbox-time` is the time of the insert; the record's own timestamp is that of publishing.
fn stamp(message: &Message) -> Vec<(&'static str, Bytes)> {
    let text = |value: &str| Bytes::copy_from_slice(value.as_bytes());
    let mut headers = Vec::with_capacity(7);
    headers.push(("id", Bytes::from(message.id.to_string())));
    headers.push(("correlation-id", text(&message.correlation_id)));
    let optional = [
        ("causation-id", &message.causation_id),
        ("content-type", &message.content_type),
        ("traceparent", &message.traceparent),
        ("tracestate", &message.tracestate),
    ];
    headers.extend(optional.into_iter().filter_map(|(name, value)| Some((name, text(value.as_ref()?)))));
    if let Ok(time) = message.created_at.format(&Rfc3339) {
        headers.push(("outbox-time", Bytes::from(time)));
    }
    headers
}

/// Whether an intent may bring a header of this name, and an alias may have it.
#[must_use]
pub fn own_header_is_legal(name: &str) -> bool {
    (1..=256).contains(&name.len()) && !RESERVED_HEADERS.contains(&name) && !name.starts_with(RESERVED_PREFIX)
}

/// A name as it may appear in an error: at most 64 characters of it.
#[must_use]
pub fn shortened(name: &str) -> String {
    name.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use uuid::Uuid;

    use super::*;
    use crate::held::{HoldReason, HoldState};
    use crate::message::Seq;

    const TOPIC: TopicInfo = TopicInfo { partitions: 3, max_message_bytes: 1_000 };

    fn message() -> Message {
        Message {
            seq: Seq(7),
            id: Uuid::from_u128(7),
            topic: "orders".to_owned(),
            key: Some("k".to_owned()),
            payload: Some(Bytes::from_static(b"payload")),
            headers: vec![("id".to_owned(), "forged".to_owned()), ("own".to_owned(), "1".to_owned())],
            partition: Some(9),
            content_type: None,
            correlation_id: "correlation".to_owned(),
            causation_id: None,
            traceparent: None,
            tracestate: None,
            created_at: OffsetDateTime::UNIX_EPOCH,
            deliver_after: None,
            age: Duration::ZERO,
        }
    }

    fn headers(record: &Record) -> Vec<(String, String)> {
        let ours = record.headers.iter().map(|(name, value)| {
            ((*name).to_owned(), String::from_utf8(value.to_vec()).expect("headers are text"))
        });
        ours.chain(record.own_headers.iter().cloned()).collect()
    }

    #[test]
    fn an_alias_repeats_a_stamped_header_and_takes_none_away() {
        let mut message = Message { partition: None, ..message() };
        message.headers.remove(0);
        let aliases = [("correlation-id", "x-request-id".to_owned()), ("causation-id", "x-cause".to_owned())];
        let record = route(&message, TOPIC, &aliases).unwrap();
        let names: Vec<String> = headers(&record).into_iter().map(|(name, _)| name).collect();
        assert_eq!(
            names,
            ["id", "correlation-id", "outbox-time", "x-request-id", "own"],
            "and none without a value"
        );
        assert_eq!(record.own_headers[0].1, "correlation");
    }

    #[test]
    fn a_replayed_copy_differs_by_one_header_which_counts_for_its_size() {
        let mut message = Message { partition: None, ..message() };
        message.headers.remove(0);
        let first = route(&message, TOPIC, &[]).unwrap();
        let again = replayed(&message, 12, TOPIC, &[]).unwrap();
        let (own, mut ours) = (again.own_headers.clone(), again.headers.clone());
        assert_eq!(ours.pop(), Some((REPLAY_HEADER, Bytes::from_static(b"12"))));
        assert_eq!(Record { headers: ours, own_headers: own, ..again }, first);
        let tight = TopicInfo { max_message_bytes: first.size_bytes(), ..TOPIC };
        assert!(route(&message, tight, &[]).is_ok());
        assert!(matches!(replayed(&message, 12, tight, &[]), Err(Refusal::TooLarge { .. })));
    }

    #[test]
    fn a_copy_says_what_became_of_the_message_and_keeps_what_it_was() {
        let message = message();
        let hold = Hold {
            seq: message.seq,
            topic: message.topic.clone(),
            key_hash: None,
            state: HoldState::Parked,
            reason: HoldReason::NoSuchPartition,
            error: Some("partition 9 does not exist: the topic has 3".to_owned()),
            attempts: 1,
            due_in: Duration::ZERO,
            dead_letter: None,
        };
        let letter = DeadLetter {
            topic: "dead",
            hold: &hold,
            at: OffsetDateTime::UNIX_EPOCH + Duration::from_secs(1),
        };
        let aliases = [("id", "message-id".to_owned())];
        let record = dead_letter(&message, letter, TOPIC, &aliases).unwrap();
        assert_eq!((record.topic.as_str(), record.partition), ("dead", None));
        assert_eq!((&record.key, &record.payload), (&Some(Bytes::from_static(b"k")), &message.payload));
        let id = message.id.to_string();
        let expected = [
            ("id", id.as_str()),
            ("correlation-id", "correlation"),
            ("outbox-time", "1970-01-01T00:00:00Z"),
            ("outbox-dead-letter-reason", "no_such_partition"),
            ("outbox-dead-letter-error", "partition 9 does not exist: the topic has 3"),
            ("outbox-dead-letter-attempts", "1"),
            ("outbox-dead-letter-topic", "orders"),
            ("outbox-dead-letter-partition", "9"),
            ("outbox-dead-letter-time", "1970-01-01T00:00:01Z"),
            ("message-id", id.as_str()),
            ("own", "1"),
        ];
        assert_eq!(headers(&record), expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
        let small = TopicInfo { max_message_bytes: 100, ..TOPIC };
        assert!(matches!(dead_letter(&message, letter, small, &[]), Err(Refusal::TooLarge { .. })));
    }
}
