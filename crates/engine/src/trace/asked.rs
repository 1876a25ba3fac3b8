//! What somebody may hold in his hand when he asks, and how it is recognised.

use std::fmt;

use uuid::Uuid;

/// A place in Kafka.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Topic.
    pub topic: String,
    /// Partition.
    pub partition: i32,
    /// Offset.
    pub offset: i64,
}

impl Place {
    /// Reads `topic/partition@offset`, and `topic[partition]@offset` as the relay prints it.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (record, offset) = text.rsplit_once('@')?;
        let (topic, partition) = match record.strip_suffix(']') {
            Some(record) => record.rsplit_once('[')?,
            None => record.rsplit_once('/')?,
        };
        let number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()) && !text.is_empty();
        let legal = (1..=249).contains(&topic.len())
            && topic.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
        if !legal || !number(partition) || !number(offset) {
            return None;
        }
        Some(Self {
            topic: topic.to_owned(),
            partition: partition.parse().ok()?,
            offset: offset.parse().ok()?,
        })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}]@{}", self.topic, self.partition, self.offset)
    }
}

/// One way to look for intents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum By {
    /// Message ids.
    Ids(Vec<Uuid>),
    /// Correlation id.
    Correlation(String),
    /// Intents that one of these caused: their causation id.
    Causation(Vec<String>),
    /// Trace id: 32 hex digits of `traceparent`.
    TraceId(String),
    /// Idempotency key.
    Idempotency(String),
    /// Kafka key, in one topic or in all.
    Key {
        /// The key.
        key: String,
        /// The topic as the intent names it.
        topic: Option<String>,
    },
    /// The writing transaction.
    Xid(u64),
}

impl By {
    /// What it is, in words.
    #[must_use]
    pub fn what(&self) -> &'static str {
        match self {
            Self::Ids(_) => "message id",
            Self::Correlation(_) => "correlation id",
            Self::Causation(_) => "causation id",
            Self::TraceId(_) => "trace id",
            Self::Idempotency(_) => "idempotency key",
            Self::Key { .. } => "key",
            Self::Xid(_) => "transaction",
        }
    }

    /// The optional index that serves it, by the word that [`Standing::indexes`](super::Standing::indexes) uses; `None`: an
    /// index that every outbox has.
    #[must_use]
    pub fn index(&self) -> Option<&'static str> {
        match self {
            Self::Ids(_) => Some("id"),
            Self::Correlation(_) => Some("correlation"),
            Self::Causation(_) => Some("causation"),
            Self::TraceId(_) => Some("trace"),
            Self::Key { .. } => Some("key"),
            Self::Idempotency(_) | Self::Xid(_) => None,
        }
    }
}

/// What was typed, recognised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recognised {
    /// A place in Kafka: the record there says which message it is.
    Place(Place),
    /// Ways to look, in the order in which they are tried.
    By(Vec<By>),
}

/// Recognises what was typed: a place in Kafka; a UUID, which is a message id and may be a correlation id; a trace id, alone or
/// within a `traceparent`; anything else is an idempotency key or a correlation id.
#[must_use]
pub fn recognise(text: &str) -> Recognised {
    let text = text.trim();
    if let Some(place) = Place::parse(text) {
        return Recognised::Place(place);
    }
    let correlation = || By::Correlation(text.to_owned());
    // 32 digits without hyphens are a trace id, although they can be read as a UUID too.
    if let Some(trace_id) = trace_id(text) {
        let mut by = vec![By::TraceId(trace_id.to_ascii_lowercase()), correlation()];
        by.extend(Uuid::try_parse(text).ok().map(|id| By::Ids(vec![id])));
        return Recognised::By(by);
    }
    match Uuid::try_parse(text) {
        Ok(id) => Recognised::By(vec![By::Ids(vec![id]), correlation()]),
        Err(_) => Recognised::By(vec![By::Idempotency(text.to_owned()), correlation()]),
    }
}

/// The trace id of `00-<trace id>-<span id>-<flags>`, or one that stands alone.
#[must_use]
pub fn trace_id(text: &str) -> Option<&str> {
    let is_hex = |text: &str, len| text.len() == len && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let mut parts = text.split('-');
    match (parts.next(), parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(id), None, ..) if is_hex(id, 32) => Some(id),
        (Some(version), Some(id), Some(span), Some(flags), None)
            if is_hex(version, 2) && is_hex(id, 32) && is_hex(span, 16) && is_hex(flags, 2) =>
        {
            Some(id)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_id_is_recognised_and_anything_else_is_a_correlation_id_or_an_idempotency_key() {
        let id = "0198c5a4-7a0e-7c9e-b9f1-3d6a0a6f2b11";
        let place = Place { topic: "orders.eu".into(), partition: 2, offset: 17 };
        assert_eq!(recognise("orders.eu/2@17"), Recognised::Place(place.clone()));
        assert_eq!(recognise(&place.to_string()), Recognised::Place(place));
        assert_eq!(
            recognise(id),
            Recognised::By(vec![By::Ids(vec![id.parse().unwrap()]), By::Correlation(id.into())])
        );
        let trace = "4BF92F3577B34DA6A3CE929D0E0E4736";
        for text in [trace.to_owned(), format!("00-{trace}-00f067aa0ba902b7-01")] {
            let Recognised::By(by) = recognise(&text) else { panic!("{text}") };
            assert_eq!(by[0], By::TraceId(trace.to_lowercase()), "{text}");
        }
        for text in ["req-8f2e", "debit-7-2031-02-03", "orders@17", "a/b@c", "o/1@2x", "a b/1@2", "/1@2"] {
            assert_eq!(
                recognise(text),
                Recognised::By(vec![By::Idempotency(text.into()), By::Correlation(text.into())])
            );
        }
    }
}
