//! The message: an intent as the relay handles it.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

/// A message's place in the outbox, drawn by the database when the intent was inserted.
///
/// `seq` order equals causal order when the second writer inserts after the first has committed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Seq(pub i64);

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One intent as it was read from the outbox.
///
/// `Debug` shows no key, payload or header value: they are the application's data.
#[derive(Clone, PartialEq, Eq)]
pub struct Message {
    /// Place in the outbox.
    pub seq: Seq,
    /// What consumers are idempotent on.
    pub id: Uuid,
    /// Kafka topic.
    pub topic: String,
    /// Kafka key; messages of one key keep their order. `None` has no order.
    pub key: Option<String>,
    /// The bytes as written; `None` is a tombstone.
    pub payload: Option<Bytes>,
    /// The intent's own headers, in the order in which they are stamped.
    pub headers: Vec<(String, String)>,
    /// Explicit partition, instead of the one that the key decides.
    pub partition: Option<i32>,
    /// Media type of the payload.
    pub content_type: Option<String>,
    /// What ties everything together that belongs to one business transaction. Never empty.
    pub correlation_id: String,
    /// Id of the message or request that caused this one.
    pub causation_id: Option<String>,
    /// W3C trace context of the writer.
    pub traceparent: Option<String>,
    /// W3C trace state of the writer.
    pub tracestate: Option<String>,
    /// When the intent was inserted, by the database's clock.
    pub created_at: OffsetDateTime,
    /// Not to be delivered before this time, by the database's clock. `None`: at once, in its order.
    pub deliver_after: Option<OffsetDateTime>,
    /// How long it could have been delivered already when it was read, by the database's clock: since it was inserted, or since
    /// `deliver_after` if that is later. Never negative.
    pub age: Duration,
}

impl Message {
    /// Bytes that this message costs while it is in flight: payload, key, headers and a fixed overhead.
    #[must_use]
    pub fn cost_bytes(&self) -> usize {
        const OVERHEAD: usize = 256;
        OVERHEAD
            + self.payload.as_ref().map_or(0, Bytes::len)
            + self.key.as_ref().map_or(0, String::len)
            + self.topic.len()
            + self.correlation_id.len()
            + [&self.content_type, &self.causation_id, &self.traceparent, &self.tracestate]
                .map(|text| text.as_ref().map_or(0, String::len))
                .iter()
                .sum::<usize>()
            + self.headers.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>()
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message")
            .field("seq", &self.seq.0)
            .field("id", &self.id)
            .field("topic", &self.topic)
            .field("keyed", &self.key.is_some())
            .field("payload_bytes", &self.payload.as_ref().map(Bytes::len))
            .field("correlation_id", &self.correlation_id)
            .finish_non_exhaustive()
    }
}
