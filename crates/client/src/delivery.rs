//! A record that a consumer received, as the inbox sees it.

use std::fmt;

use uuid::Uuid;

use crate::context::Context;

/// One copy of a message: its id, and where it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// Message id: the same in every copy.
    pub id: Uuid,
    /// The header `correlation-id` and the trace headers, for what the handler does.
    pub context: Context,
    /// Topic, partition and offset of this copy, if they were given.
    pub place: Option<Place>,
}

/// Where a record is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Topic.
    pub topic: String,
    /// Partition.
    pub partition: i32,
    /// Offset.
    pub offset: i64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}@{}", self.topic, self.partition, self.offset)
    }
}

/// The record was not published by the relay, or something took its header away. Nothing can tell a copy of it from another
/// message: set it aside, and do not acknowledge it before somebody knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the record has no header `id` with a UUID: it was not published by outboxd")]
pub struct NoId;

impl Delivery {
    /// Reads a record's headers, whatever Kafka client they come from.
    ///
    /// # Errors
    /// [`NoId`].
    pub fn from_headers<'h>(
        headers: impl IntoIterator<Item = (&'h str, Option<&'h [u8]>)>,
    ) -> Result<Self, NoId> {
        let mut id = None;
        let mut context = Context::default();
        for (name, value) in headers {
            let text = value.and_then(|bytes| std::str::from_utf8(bytes).ok());
            // The relay stamps its own before the intent's: the first one counts.
            let field = match name {
                "id" => {
                    id = id.or_else(|| Uuid::try_parse(text?).ok());
                    continue;
                }
                "correlation-id" => &mut context.correlation_id,
                "traceparent" => &mut context.traceparent,
                "tracestate" => &mut context.tracestate,
                _ => continue,
            };
            if field.is_none() {
                *field = text.map(str::to_owned);
            }
        }
        let id = id.ok_or(NoId)?;
        context.causation_id = Some(id.to_string());
        Ok(Self { id, context, place: None })
    }

    /// Where this copy was found; the inbox keeps it of the copy that took effect.
    #[must_use]
    pub fn at(mut self, topic: impl Into<String>, partition: i32, offset: i64) -> Self {
        self.place = Some(Place { topic: topic.into(), partition, offset });
        self
    }

    /// Runs what handles the message within its context: every intent that is emitted inside has this message as its cause, and
    /// its correlation id.
    ///
    /// With the feature `tracing` it runs in a span `process`, whose fields `message_id` and `correlation_id` are thus on every
    /// line that the handler logs. With `opentelemetry` that span is a child of the span that the message's intent was emitted in.
    pub async fn scope<F: Future>(&self, handle: F) -> F::Output {
        #[cfg(feature = "tracing")]
        let handle = tracing::Instrument::instrument(handle, crate::spans::process(self));
        self.context.clone().scope(handle).await
    }
}

/// What a claim found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a duplicate must change nothing"]
pub enum Claim {
    /// This consumer has not handled the message: handle it in this transaction.
    Fresh,
    /// It has. Change nothing, commit, acknowledge.
    Duplicate,
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0198c5a4-7a0e-7c9e-b9f1-3d6a0a6f2b11";

    #[test]
    fn what_follows_from_a_message_is_correlated_with_it_and_caused_by_it() {
        let headers = [("id", ID), ("correlation-id", "req-1"), ("tenant", "42"), ("id", "not ours")];
        let delivery = Delivery::from_headers(headers.map(|(n, v)| (n, Some(v.as_bytes())))).unwrap();
        assert_eq!(delivery.id.to_string(), ID);
        let context = Context { causation_id: Some(ID.into()), ..Context::correlated("req-1") };
        assert_eq!(delivery.context, context);
    }

    #[test]
    fn a_record_without_an_id_is_an_error_and_never_a_fresh_message() {
        assert_eq!(Delivery::from_headers([]), Err(NoId));
        assert_eq!(Delivery::from_headers([("id", None)]), Err(NoId));
        assert_eq!(Delivery::from_headers([("id", Some(b"17".as_slice()))]), Err(NoId));
    }
}
