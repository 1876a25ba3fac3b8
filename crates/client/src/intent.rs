//! What an application wants published.

use std::collections::BTreeMap;

use serde::Serialize;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::context::Context;
use crate::error::Error;

const JSON: &str = "application/json";

/// An intent: a topic, a payload (or a tombstone), and what else goes into the record.
///
/// The database checks it when it is emitted and refuses a bad one inside the transaction, with what to do about it
/// ([`Error::Refused`]).
///
/// ```
/// # fn main() -> Result<(), outbox_client::Error> {
/// use outbox_client::Intent;
///
/// #[derive(serde::Serialize)]
/// struct Placed { order: i64, amount_cents: i64 }
///
/// let intent = Intent::to("orders")
///     .key("order-17")
///     .header("tenant", "42")
///     .payload_json(&Placed { order: 17, amount_cents: 1250 })?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use = "an intent is written by emit"]
pub struct Intent {
    pub(crate) topic: String,
    pub(crate) key: Option<String>,
    payload: Payload,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) partition: Option<i32>,
    pub(crate) content_type: Option<String>,
    pub(crate) context: Context,
    pub(crate) id: Option<Uuid>,
    pub(crate) deliver_after: Option<OffsetDateTime>,
    pub(crate) idempotency_key: Option<String>,
}

#[derive(Clone, PartialEq, Eq)]
enum Payload {
    Missing,
    Tombstone,
    Bytes(Vec<u8>),
}

/// Payloads are never logged.
impl std::fmt::Debug for Payload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Missing => f.write_str("missing"),
            Self::Tombstone => f.write_str("tombstone"),
            Self::Bytes(bytes) => write!(f, "{} bytes", bytes.len()),
        }
    }
}

impl Intent {
    /// An intent for this Kafka topic.
    pub fn to(topic: impl Into<String>) -> Self {
        Self {
            topic: topic.into(),
            key: None,
            payload: Payload::Missing,
            headers: BTreeMap::new(),
            partition: None,
            content_type: None,
            context: Context::default(),
            id: None,
            deliver_after: None,
            idempotency_key: None,
        }
    }

    /// Intents of one topic and key keep their order, if the second is emitted after the first has committed.
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// The payload as JSON. The content type becomes `application/json` unless it is set.
    ///
    /// # Errors
    /// [`Error::Payload`] if the value has no JSON form.
    pub fn payload_json<T: Serialize + ?Sized>(mut self, value: &T) -> Result<Self, Error> {
        self.payload = Payload::Bytes(serde_json::to_vec(value).map_err(|source| Error::Payload { source })?);
        self.content_type.get_or_insert_with(|| JSON.to_owned());
        Ok(self)
    }

    /// The payload, exactly these bytes.
    pub fn payload_bytes(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.payload = Payload::Bytes(bytes.into());
        self
    }

    /// The payload: this text as UTF-8.
    pub fn payload_text(self, text: impl Into<String>) -> Self {
        self.payload_bytes(text.into())
    }

    /// No payload: a record that deletes its key in a compacted topic. Needs a key.
    pub fn tombstone(mut self) -> Self {
        self.payload = Payload::Tombstone;
        self
    }

    /// A header of the record; a second one of the same name replaces the first. Names that the relay stamps are refused.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.insert(name.into(), value.into());
        self
    }

    /// This partition instead of the one that the key decides.
    pub fn partition(mut self, partition: i32) -> Self {
        self.partition = Some(partition);
        self
    }

    /// The header `content-type`.
    pub fn content_type(mut self, content_type: impl Into<String>) -> Self {
        self.content_type = Some(content_type.into());
        self
    }

    /// What ties together everything that belongs to one business transaction, instead of the [`Context`]'s.
    pub fn correlation_id(mut self, id: impl Into<String>) -> Self {
        self.context.correlation_id = Some(id.into());
        self
    }

    /// The message or request that caused this one, instead of the [`Context`]'s.
    pub fn causation_id(mut self, id: impl Into<String>) -> Self {
        self.context.causation_id = Some(id.into());
        self
    }

    /// W3C trace context, instead of the [`Context`]'s.
    pub fn traceparent(mut self, traceparent: impl Into<String>) -> Self {
        self.context.traceparent = Some(traceparent.into());
        self
    }

    /// W3C trace context, instead of the [`Context`]'s.
    pub fn tracestate(mut self, tracestate: impl Into<String>) -> Self {
        self.context.tracestate = Some(tracestate.into());
        self
    }

    /// Published once this time has come by the database's clock, not before. What is scheduled has no order with what is not.
    pub fn deliver_after(mut self, time: OffsetDateTime) -> Self {
        self.deliver_after = Some(time);
        self
    }

    /// The first intent of this key is written; a second one writes nothing and gets the first one's id, for as long as the
    /// outbox keeps the first.
    pub fn idempotency_key(mut self, key: impl Into<String>) -> Self {
        self.idempotency_key = Some(key.into());
        self
    }

    /// The message id, what consumers are idempotent on. Left out: a fresh `UUIDv7`. The same id twice is the same message
    /// twice to every consumer.
    pub fn id(mut self, id: Uuid) -> Self {
        self.id = Some(id);
        self
    }

    /// The bytes to write; NULL for a tombstone.
    pub(crate) fn payload(&self) -> Result<Option<&[u8]>, Error> {
        match &self.payload {
            Payload::Missing => Err(Error::Incomplete),
            Payload::Tombstone => Ok(None),
            Payload::Bytes(bytes) => Ok(Some(bytes)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_says_what_it_is_unless_it_was_said() {
        let typed = Intent::to("orders").payload_json(&[1, 2]).unwrap();
        assert_eq!(typed.content_type.as_deref(), Some("application/json"));
        let own = Intent::to("orders").content_type("application/cloudevents+json").payload_json(&1).unwrap();
        assert_eq!(own.content_type.as_deref(), Some("application/cloudevents+json"));
    }

    #[test]
    fn the_debug_form_shows_no_payload() {
        let shown = format!("{:?}", Intent::to("orders").payload_text("secret"));
        assert!(shown.contains("6 bytes") && !shown.contains("secret"), "{shown}");
    }

    #[test]
    fn an_intent_without_a_payload_is_no_tombstone() {
        assert!(matches!(Intent::to("orders").key("k").payload(), Err(Error::Incomplete)));
        assert!(matches!(Intent::to("orders").key("k").tombstone().payload(), Ok(None)));
        assert!(matches!(Intent::to("orders").payload_text("").payload(), Ok(Some(b""))));
    }
}
