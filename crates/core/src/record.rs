//! From message to record: the only place where headers are stamped and where a message is refused for its own sake
//! before a broker has seen it.

use bytes::Bytes;
use time::format_description::well_known::Rfc3339;

use crate::message::Message;

/// Names that the relay stamps itself. An intent that brings one of them, or a name that starts with
/// [`RESERVED_PREFIX`], is refused where it is written; one that got through is refused here.
pub const RESERVED_HEADERS: [&str; 6] =
    ["id", "correlation-id", "causation-id", "content-type", "traceparent", "tracestate"];

/// Prefix of the relay's other header names.
pub const RESERVED_PREFIX: &str = "outbox-";

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
    /// The intent's own headers, after ours.
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

/// Turns a message into the record that is published, or says why it never can be.
///
/// Pure: the same message and topic give the same record, so a repeated copy is identical to the first.
///
/// # Errors
/// [`Refusal`] if the message is refused for its own sake. Nothing was handed to Kafka then.
pub fn route(message: &Message, topic: TopicInfo) -> Result<Record, Refusal> {
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
        headers: stamp(message),
        own_headers: message.headers.clone(),
    };
    let size_bytes = record.size_bytes();
    if size_bytes > topic.max_message_bytes {
        return Err(Refusal::TooLarge { size_bytes, limit_bytes: topic.max_message_bytes });
    }
    Ok(record)
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

/// Whether an intent may bring a header of this name.
#[must_use]
pub fn own_header_is_legal(name: &str) -> bool {
    (1..=256).contains(&name.len()) && !RESERVED_HEADERS.contains(&name) && !name.starts_with(RESERVED_PREFIX)
}

/// A name as it may appear in an error: at most 64 characters of it.
#[must_use]
pub fn shortened(name: &str) -> String {
    name.chars().take(64).collect()
}
