//! The [`Publisher`](outboxd_engine::Publisher) port over librdkafka.
//!
//! Knows Kafka and nothing of any database. It reports what happened in the words of [`outboxd_core::Fault`] and decides
//! nothing. Invariants that the rest of the relay builds on:
//!
//! - Records are handed to librdkafka in the order in which they were enqueued, and librdkafka never reorders them: it is
//!   idempotent, acknowledged by all replicas and has no message timeout. The properties that would change that are
//!   refused by name ([`validate`]).
//! - A record gets one report, or its client was thrown away by `renew`.
//! - Nothing here creates a topic.
//! - No configured value appears in an error, a log line or a `Debug` output, because any of them may be a secret.

pub mod config;

pub mod properties;

pub mod fault;

pub mod connection;

pub mod publisher;

pub mod topics;

pub mod inspect;

pub mod reader;

pub mod retention;

pub mod mock;

pub use config::{Compression, KafkaConfig};
pub use connection::{Connection, ConnectionError};
pub use inspect::{OutboxFacts, inspect};
pub use mock::{MockBroker, MockRefusal};
pub use properties::{PropertyProblem, is_secret, validate};
pub use publisher::{CreateError, KafkaPublisher};
pub use reader::{Absence, AtPlace, Bounds, PlaceReader, ReadError, ReadRecord, RecordReader, Span};
pub use retention::retention;
