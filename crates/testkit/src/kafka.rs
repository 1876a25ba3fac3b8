//! Real Apache Kafka for tests: a broker of one's own to kill and freeze ([`Broker`]), and what tests do with topics.
//!
//! Nothing here knows the outbox.

pub mod broker;

#[cfg(feature = "clients")]
pub mod topics;

pub use broker::{Broker, Options};
#[cfg(feature = "clients")]
pub use topics::{
    Consumed, acknowledged, add_partitions, count, create_topic, create_topics, delete_records, delete_topic,
    produce, produce_with_java, read_all, read_at_least, unique_topic,
};
