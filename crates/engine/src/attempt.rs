//! Following single attempts to publish, from the hand-over to the answer: what tracing listens to.
//!
//! The engine knows no tracing system. It offers each attempt to the observer, keeps what it gets back beside the message, and
//! gives it the answer. An observer that follows nothing costs a call that returns nothing.

use std::fmt;

use outboxd_core::{DeliveryError, Message, Receipt, Refusal};
use tokio::time::Instant;

use crate::observe::Outcome;

/// An attempt to publish a record, at the moment of its hand-over to the client.
#[derive(Clone, Copy, Debug)]
pub struct Attempt<'a> {
    /// The message.
    pub message: &'a Message,
    /// The record's topic at Kafka.
    pub topic: &'a str,
    /// Whether the record is the copy of a parked message for its dead-letter topic.
    pub is_dead_letter: bool,
    /// Failed attempts charged before.
    pub attempts: u32,
    /// Since when the message could have been delivered, on this process's clock.
    pub waited_since: Instant,
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug)]
pub enum Answer<'a> {
    /// Kafka has it.
    Acknowledged(Receipt),
    /// It failed; what that means for the message is the outcome.
    Failed(&'a DeliveryError, Outcome),
    /// It was refused for its own sake and not sent.
    Refused(&'a Refusal),
}

/// Follows one attempt. Dropped without an answer: none came before the client was renewed or the term ended, so the record may or
/// may not be in the log.
pub trait Follow: fmt::Debug + Send + Sync {
    /// The answer. Quick, does not block, does not panic.
    fn ended(self: Box<Self>, answer: Answer<'_>);
}

/// What follows an attempt, if anything does.
pub(crate) type Followed = Option<Box<dyn Follow>>;

/// Gives the answer to whoever follows.
pub(crate) fn ended(followed: Followed, answer: Answer<'_>) {
    if let Some(followed) = followed {
        followed.ended(answer);
    }
}
