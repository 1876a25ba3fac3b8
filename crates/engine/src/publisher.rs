//! The port to Kafka.
//!
//! Contract: records enqueued one after the other reach their partition in that order or not at all; every enqueued
//! record gets exactly one [`Report`], unless the publisher was renewed in between; nothing is retried in another order.
//! What happened is reported in the words of [`Fault`](outboxd_core::Fault); what it means is not decided here.

use std::future::Future;

use outboxd_core::{DeliveryError, HoldReason, Receipt, Record, Refusal, TopicInfo};

/// Names an enqueued record until its report comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u64);

/// The answer to one enqueued record.
#[derive(Clone, Debug)]
pub struct Report {
    /// Which record.
    pub token: Token,
    /// Acknowledged, or what went wrong: then it may or may not be in the log.
    pub result: Result<Receipt, DeliveryError>,
}

/// Why a record was not enqueued. It is certainly not in the log.
#[derive(Debug)]
pub enum EnqueueError {
    /// The queue is full: wait for reports and hand it in again.
    Full(Box<Record>),
    /// Refused for its own sake.
    Refused(Refusal),
    /// The producer cannot take anything.
    Fault(DeliveryError),
}

/// What is known of a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TopicState {
    /// Can be written to.
    Writable(TopicInfo),
    /// Cannot: it does not exist or is not authorised.
    Held(HoldReason),
    /// No broker answered; nothing is known.
    Unreachable(DeliveryError),
}

/// The client library's queue and connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PublisherStats {
    /// Records in the client's queue.
    pub queue_messages: u64,
    /// Bytes in the client's queue, if known.
    pub queue_bytes: u64,
}

/// Kafka, as the loop needs it.
pub trait Publisher: Send + 'static {
    /// Hands a record to the client, in order, without waiting.
    ///
    /// # Errors
    /// [`EnqueueError`]; the record is not in the log.
    fn enqueue(&mut self, token: Token, record: Record) -> Result<(), EnqueueError>;

    /// Waits for reports and appends them, in the order in which they came. Cancel safe: a report is either appended or
    /// still to come.
    fn reports(&mut self, into: &mut Vec<Report>) -> impl Future<Output = ()> + Send;

    /// Looks topics up. Answers within the publisher's own deadline; the future owns what it needs, so that look-ups run
    /// beside the loop.
    fn look_up(
        &self,
        topics: Vec<String>,
    ) -> impl Future<Output = Vec<(String, TopicState)>> + Send + 'static;

    /// Asks which Kafka cluster the client talks to. Answers within the publisher's own deadline; the future owns what it needs.
    /// `None`: brokers answer and name no cluster.
    ///
    /// # Errors
    /// [`DeliveryError`] if no broker answers.
    fn cluster(&self) -> impl Future<Output = Result<Option<String>, DeliveryError>> + Send + 'static;

    /// Whether a renewal is needed before more is enqueued: fatal error, or settings that no longer fit the topics (a
    /// batch size above a topic's limit).
    fn must_renew(&self) -> bool;

    /// Throws away whatever is queued or in flight and starts again with a new client. Records without a report may or
    /// may not be in the log; their reports never come.
    fn renew(&mut self) -> impl Future<Output = ()> + Send;

    /// Throws away whatever is queued or in flight, and the client with it, until the next [`Publisher::renew`]. A publisher
    /// begins closed.
    fn close(&mut self) -> impl Future<Output = ()> + Send;

    /// The client's queue.
    fn stats(&self) -> PublisherStats;
}
