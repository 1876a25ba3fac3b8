//! Reads topics: from their beginning, or where records are said to be. Joins no group, commits nothing, leaves no trace in the
//! cluster.

mod places;

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use outboxd_core::Fault;
use rdkafka::consumer::{Consumer as _, StreamConsumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Headers as _, Message as _};
use rdkafka::{Offset, TopicPartitionList};
use tokio::task::spawn_blocking;

use crate::config::KafkaConfig;
use crate::connection::Connection;
use crate::fault::{fault_of, name_of};
use crate::properties::creation_reason;

pub use outboxd_core::verify::Absence;
pub use places::{AtPlace, Bounds, PlaceReader, Span};

/// Why nothing can be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// librdkafka made no client.
    #[error("create Kafka client: {0}")]
    Client(String),
    /// No broker answers.
    #[error("reach Kafka: {0}")]
    Brokers(String),
    /// A topic does not exist or may not be read.
    #[error("look up topic {topic}: {code}")]
    Topic {
        /// The topic.
        topic: String,
        /// What happened, in our words.
        fault: Fault,
        /// librdkafka's name for the reason.
        code: String,
    },
    /// A read failed.
    #[error("read from Kafka: {0}")]
    Read(String),
}

/// A record as it is in the log.
#[derive(Clone, PartialEq, Eq)]
pub struct ReadRecord {
    /// Topic.
    pub topic: String,
    /// Partition.
    pub partition: i32,
    /// Offset.
    pub offset: i64,
    /// Milliseconds since the epoch, as the broker keeps them.
    pub timestamp_ms: Option<i64>,
    /// Key.
    pub key: Option<Bytes>,
    /// Headers in their order.
    pub headers: Vec<(String, Bytes)>,
    /// Payload; `None` is a tombstone.
    pub payload: Option<Bytes>,
}

impl ReadRecord {
    /// The value of the first header of this name, if it is text.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().find(|(key, _)| key == name)?;
        std::str::from_utf8(value).ok()
    }
}

impl fmt::Debug for ReadRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadRecord")
            .field("topic", &self.topic)
            .field("partition", &self.partition)
            .field("offset", &self.offset)
            .finish_non_exhaustive()
    }
}

/// Where a reader begins.
#[derive(Clone, Copy)]
enum Begin {
    Beginning,
    End,
}

/// Reads all partitions of some topics, in the order of each partition.
pub struct RecordReader {
    consumer: StreamConsumer<Connection>,
}

impl RecordReader {
    /// Starts at the beginning of these topics, which must exist.
    ///
    /// # Errors
    /// [`ReadError`] if no broker answers within `look_up_within` or a topic cannot be read.
    pub async fn from_beginning(config: &KafkaConfig, topics: &[&str]) -> Result<Self, ReadError> {
        Self::from(config, topics, Begin::Beginning).await
    }

    /// Starts behind the last records of these topics, which must exist: everything that is written after this has returned is
    /// read.
    ///
    /// # Errors
    /// As [`RecordReader::from_beginning`].
    pub async fn from_end(config: &KafkaConfig, topics: &[&str]) -> Result<Self, ReadError> {
        Self::from(config, topics, Begin::End).await
    }

    async fn from(config: &KafkaConfig, topics: &[&str], begin: Begin) -> Result<Self, ReadError> {
        let config = config.clone();
        let topics: Vec<String> = topics.iter().map(|topic| (*topic).to_owned()).collect();
        let started = spawn_blocking(move || Self::start(&config, &topics, begin)).await;
        started.map_err(|error| ReadError::Client(error.to_string()))?
    }

    fn start(config: &KafkaConfig, topics: &[String], begin: Begin) -> Result<Self, ReadError> {
        let mut settings = config.reading();
        settings.set("fetch.wait.max.ms", "50");
        let consumer: StreamConsumer<Connection> = settings
            .create_with_context(Connection::default())
            .map_err(|error| ReadError::Client(creation_reason(&error)))?;
        let mut assigned = TopicPartitionList::new();
        for topic in topics {
            for partition in 0..partitions_of(&consumer, topic, config.look_up_within)? {
                let offset = match begin {
                    Begin::Beginning => Offset::Beginning,
                    // As a number: the word would be looked up later, behind what was written meanwhile.
                    Begin::End => consumer
                        .fetch_watermarks(topic, partition, config.look_up_within)
                        .map(|(_, end)| Offset::Offset(end))
                        .map_err(|error| failed(topic, &error))?,
                };
                assigned
                    .add_partition_offset(topic, partition, offset)
                    .map_err(|error| ReadError::Read(reason(&error)))?;
            }
        }
        consumer.assign(&assigned).map_err(|error| ReadError::Read(reason(&error)))?;
        Ok(Self { consumer })
    }

    /// The next record; waits for one for ever. Cancel safe. A broker that is down is waited for.
    ///
    /// # Errors
    /// [`ReadError::Read`] if a partition cannot be read on.
    pub async fn next(&self) -> Result<ReadRecord, ReadError> {
        match self.consumer.recv().await {
            Ok(message) => Ok(record_of(&message)),
            Err(error) => Err(ReadError::Read(reason(&error))),
        }
    }
}

impl fmt::Debug for RecordReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecordReader").finish_non_exhaustive()
    }
}

fn partitions_of(
    consumer: &StreamConsumer<Connection>,
    topic: &str,
    within: Duration,
) -> Result<i32, ReadError> {
    let unknown =
        |fault, code: &str| ReadError::Topic { topic: topic.to_owned(), fault, code: code.to_owned() };
    if !outboxd_core::record::topic_is_legal(topic) {
        return Err(unknown(Fault::InvalidRecord, "InvalidTopic"));
    }
    let metadata = consumer.fetch_metadata(Some(topic), within).map_err(|error| failed(topic, &error))?;
    let found = metadata.topics().iter().find(|found| found.name() == topic);
    let found = found.ok_or_else(|| unknown(Fault::TopicUnknown, "UnknownTopic"))?;
    match found.error() {
        Some(error) => Err(failed(topic, &KafkaError::MetadataFetch(error.into()))),
        None => Ok(i32::try_from(found.partitions().len()).unwrap_or(i32::MAX)),
    }
}

/// What an error says of a topic, or of the way to it.
fn failed(topic: &str, error: &KafkaError) -> ReadError {
    let Some(code) = error.rdkafka_error_code() else { return ReadError::Read(error.to_string()) };
    match fault_of(code) {
        fault @ (Fault::TopicUnknown | Fault::TopicUnauthorized) => {
            ReadError::Topic { topic: topic.to_owned(), fault, code: name_of(code) }
        }
        Fault::Unreachable
        | Fault::TimedOut
        | Fault::BrokerNotReady
        | Fault::Authentication
        | Fault::ClusterUnauthorized => ReadError::Brokers(name_of(code)),
        Fault::Fenced
        | Fault::FatalProducer
        | Fault::Purged
        | Fault::TooLarge
        | Fault::InvalidRecord
        | Fault::Unknown => ReadError::Read(name_of(code)),
    }
}

fn reason(error: &KafkaError) -> String {
    error.rdkafka_error_code().map_or_else(|| error.to_string(), name_of)
}

fn record_of(message: &BorrowedMessage<'_>) -> ReadRecord {
    let header = |header: rdkafka::message::Header<'_, &[u8]>| {
        (header.key.to_owned(), Bytes::copy_from_slice(header.value.unwrap_or_default()))
    };
    ReadRecord {
        topic: message.topic().to_owned(),
        partition: message.partition(),
        offset: message.offset(),
        timestamp_ms: message.timestamp().to_millis(),
        key: message.key().map(Bytes::copy_from_slice),
        headers: message.headers().map(|headers| headers.iter().map(header).collect()).unwrap_or_default(),
        payload: message.payload().map(Bytes::copy_from_slice),
    }
}
