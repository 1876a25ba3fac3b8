//! What an operator may change about a held message. The intent itself is never changed: the edit stands beside it and is applied
//! when the message is published.

use std::collections::BTreeSet;
use std::fmt;

use outboxd_core::record::{own_header_is_legal, shortened, topic_is_legal};
use outboxd_core::{KeyHash, Seq};
use serde::Serialize;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;

/// What to change.
#[derive(Clone, Default)]
pub struct HeldEdit {
    /// Headers to add or to replace.
    pub set_headers: Vec<(String, String)>,
    /// Headers to take away.
    pub remove_headers: Vec<String>,
    /// Another topic, as an intent would name it.
    pub topic: Option<String>,
    /// Where messages go whose intents name that topic, if it is another one: a route may have a prefix.
    pub destination: Option<String>,
    /// Another partition, or none: the key decides.
    pub partition: Option<Option<i32>>,
    /// Another payload.
    pub payload: Option<Vec<u8>>,
    /// Make it due at once.
    pub retry: bool,
}

/// Header values and payload are the application's data.
impl fmt::Debug for HeldEdit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HeldEdit")
            .field("set_headers", &self.set_headers.iter().map(|(name, _)| name).collect::<Vec<_>>())
            .field("remove_headers", &self.remove_headers)
            .field("topic", &self.topic)
            .field("partition", &self.partition)
            .field("payload_bytes", &self.payload.as_ref().map(Vec::len))
            .field("retry", &self.retry)
            .finish()
    }
}

/// Why an edit is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EditRefusal {
    /// It changes nothing.
    #[error(
        "the edit changes nothing: name a header, a topic, a partition or a payload that is not what the message has"
    )]
    Nothing,
    /// Kafka or the relay does not take the topic.
    #[error("topic name {0:?} is illegal: 1 to 249 of a-z A-Z 0-9 . _ -, not starting with __")]
    Topic(String),
    /// Kafka or the relay does not take the header.
    #[error(
        "header name {0:?} is empty, longer than 256 bytes, or reserved for the relay (id, correlation-id, outbox-*, ..)"
    )]
    Header(String),
    /// There is no such header.
    #[error("the message has no header {name:?}; it has {has}")]
    NoHeader {
        /// As named.
        name: String,
        /// Those that it has.
        has: String,
    },
    /// A partition below zero.
    #[error("partition {0} does not exist: the first is 0")]
    Partition(i32),
    /// It would be larger than any intent may be.
    #[error("the edited message has {bytes} bytes, and the outbox takes {limit} (setting max_message_bytes)")]
    TooLarge {
        /// Payload, key, headers and the columns that become headers.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// It is due, so the relay may have it in its hands.
    #[error("the message is due and may be with Kafka at this moment: edit it once it is parked again")]
    Due,
}

/// A held message as it would be published now: the intent with the edits that came before.
#[derive(Clone)]
pub struct Editable {
    /// Topic.
    pub topic: String,
    /// Key.
    pub key: Option<String>,
    /// Explicit partition.
    pub partition: Option<i32>,
    /// The intent's own headers.
    pub headers: Vec<(String, String)>,
    /// Payload size; `None` for a tombstone.
    pub payload_bytes: Option<usize>,
    /// Bytes of the columns that become headers.
    pub other_bytes: usize,
    /// What was edited before, in the words of the table.
    pub edited: BTreeSet<String>,
    /// The largest message that the outbox takes.
    pub max_message_bytes: usize,
}

/// Header values and key are the application's data.
impl fmt::Debug for Editable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Editable")
            .field("topic", &self.topic)
            .field("partition", &self.partition)
            .field("payload_bytes", &self.payload_bytes)
            .field("edited", &self.edited)
            .finish_non_exhaustive()
    }
}

/// What is stored of an edit.
#[derive(Clone, Debug)]
pub struct StoredEdit {
    /// Which of the columns count: topic, partition, headers, payload.
    pub edited: Vec<String>,
    /// The topic that the message names now.
    pub topic: String,
    /// If that is another one than before: where it goes.
    pub destination: Option<String>,
    /// Hash of the destination and the key.
    pub key_hash: Option<KeyHash>,
    /// The partition that the message has now.
    pub partition: Option<i32>,
    /// The headers that the message has now: an object of strings.
    pub headers: Value,
    /// What the audit keeps: before and after, without a value of a header or a payload.
    pub details: Value,
}

impl HeldEdit {
    /// Judges the edit by the rules for intents and says what to store.
    ///
    /// # Errors
    /// [`EditRefusal`]: nothing is stored.
    pub fn apply(&self, message: &Editable) -> Result<StoredEdit, EditRefusal> {
        let topic = self.topic.clone().unwrap_or_else(|| message.topic.clone());
        if self.topic.is_some() && !topic_is_legal(&topic) {
            return Err(EditRefusal::Topic(shortened(&topic)));
        }
        let partition = self.partition.unwrap_or(message.partition);
        if let Some(partition) = partition.filter(|partition| *partition < 0) {
            return Err(EditRefusal::Partition(partition));
        }
        let headers = self.headers(&message.headers)?;
        let payload_bytes = self.payload.as_ref().map(Vec::len).or(message.payload_bytes);
        let headers_json: Map<String, Value> =
            headers.iter().map(|(name, value)| (name.clone(), Value::from(value.clone()))).collect();
        let headers_json = Value::from(headers_json);
        let bytes = payload_bytes.unwrap_or(0)
            + message.key.as_ref().map_or(0, String::len)
            + headers_json.to_string().len()
            + message.other_bytes;
        if bytes > message.max_message_bytes {
            return Err(EditRefusal::TooLarge { bytes, limit: message.max_message_bytes });
        }
        let changed = [
            ("topic", topic != message.topic),
            ("partition", partition != message.partition),
            ("headers", headers != message.headers),
            ("payload", self.payload.is_some()),
        ];
        let changed: Vec<&str> = changed.iter().filter(|(_, is)| *is).map(|(name, _)| *name).collect();
        if changed.is_empty() {
            return Err(EditRefusal::Nothing);
        }
        let mut edited = message.edited.clone();
        edited.extend(changed.iter().map(|name| (*name).to_owned()));
        let shown = |topic: &str, partition, headers: &[(String, String)], bytes| {
            let names: Vec<&str> = headers.iter().map(|(name, _)| name.as_str()).collect();
            json!({ "topic": topic, "partition": partition, "headers": names, "payload_bytes": bytes })
        };
        let details = json!({
            "changed": changed,
            "before": shown(&message.topic, message.partition, &message.headers, message.payload_bytes),
            "after": shown(&topic, partition, &headers, payload_bytes),
        });
        let destination =
            (topic != message.topic).then(|| self.destination.clone().unwrap_or_else(|| topic.clone()));
        let key_hash = destination
            .as_deref()
            .and_then(|destination| message.key.as_ref().map(|key| KeyHash::of_parts(destination, key)));
        Ok(StoredEdit {
            edited: edited.into_iter().collect(),
            destination,
            key_hash,
            topic,
            partition,
            headers: headers_json,
            details,
        })
    }

    fn headers(&self, before: &[(String, String)]) -> Result<Vec<(String, String)>, EditRefusal> {
        let mut headers = before.to_vec();
        for name in &self.remove_headers {
            let had = headers.len();
            headers.retain(|(its, _)| its != name);
            if headers.len() == had {
                let names: Vec<&str> = before.iter().map(|(name, _)| name.as_str()).collect();
                let has = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
                return Err(EditRefusal::NoHeader { name: shortened(name), has });
            }
        }
        for (name, value) in &self.set_headers {
            if !own_header_is_legal(name) || name.contains('\0') || value.contains('\0') {
                return Err(EditRefusal::Header(shortened(name)));
            }
            match headers.iter_mut().find(|(its, _)| its == name) {
                Some((_, its)) => its.clone_from(value),
                None => headers.push((name.clone(), value.clone())),
            }
        }
        Ok(headers)
    }
}

/// What became of an edit.
#[derive(Clone, Debug, Serialize)]
pub struct EditDone {
    /// The message.
    pub seq: Seq,
    /// Before and after, as the audit keeps it.
    pub details: Value,
}

/// An edit as operators see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ShownEdit {
    /// What was changed: topic, partition, headers, payload.
    pub edited: Vec<String>,
    /// When it was edited last.
    #[serde(with = "time::serde::rfc3339")]
    pub edited_at: OffsetDateTime,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message() -> Editable {
        Editable {
            topic: "orders".into(),
            key: Some("k".into()),
            partition: None,
            headers: vec![("tenant".into(), "42".into()), ("kind".into(), "secret".into())],
            payload_bytes: Some(10),
            other_bytes: 36,
            edited: BTreeSet::new(),
            max_message_bytes: 1_000,
        }
    }

    #[test]
    fn an_edit_says_what_the_message_has_now_and_the_audit_gets_no_value() {
        let edit = HeldEdit {
            set_headers: vec![("tenant".into(), "hidden".into()), ("new".into(), "x".into())],
            remove_headers: vec!["kind".into()],
            topic: Some("payments".into()),
            destination: Some("eu.payments".into()),
            partition: Some(Some(3)),
            payload: Some(b"classified".to_vec()),
            retry: false,
        };
        let stored = edit.apply(&message()).unwrap();
        assert_eq!(stored.edited, ["headers", "partition", "payload", "topic"]);
        assert_eq!(stored.headers, json!({ "tenant": "hidden", "new": "x" }));
        assert_eq!(stored.key_hash, Some(KeyHash::of_parts("eu.payments", "k")));
        assert_eq!((stored.topic.as_str(), stored.destination.as_deref()), ("payments", Some("eu.payments")));
        let kept = format!("{} {edit:?}", stored.details);
        assert!(["hidden", "secret", "classified"].iter().all(|value| !kept.contains(value)), "{kept}");
        assert_eq!(stored.details["after"]["headers"], json!(["tenant", "new"]));
    }

    #[test]
    fn an_edit_is_judged_by_the_rules_for_intents() {
        let header =
            |name: &str| HeldEdit { set_headers: vec![(name.into(), "v".into())], ..HeldEdit::default() };
        for reserved in ["id", "correlation-id", "outbox-time", "", &"n".repeat(257)] {
            assert!(matches!(header(reserved).apply(&message()), Err(EditRefusal::Header(_))), "{reserved}");
        }
        let topic = |name: &str| HeldEdit { topic: Some(name.into()), ..HeldEdit::default() };
        for illegal in ["", "__consumer_offsets", "a b", ".."] {
            assert!(matches!(topic(illegal).apply(&message()), Err(EditRefusal::Topic(_))), "{illegal}");
        }
        assert_eq!(topic("orders").apply(&message()).unwrap_err(), EditRefusal::Nothing);
        assert_eq!(HeldEdit::default().apply(&message()).unwrap_err(), EditRefusal::Nothing);
        let removed = HeldEdit { remove_headers: vec!["gone".into()], ..HeldEdit::default() };
        let said = removed.apply(&message()).unwrap_err().to_string();
        assert!(said.contains("tenant, kind"), "{said}");
        let large = HeldEdit { payload: Some(vec![0; 1_000]), ..HeldEdit::default() };
        assert!(matches!(large.apply(&message()), Err(EditRefusal::TooLarge { limit: 1_000, .. })));
        let below = HeldEdit { partition: Some(Some(-1)), ..HeldEdit::default() };
        assert_eq!(below.apply(&message()).unwrap_err(), EditRefusal::Partition(-1));
    }
}
