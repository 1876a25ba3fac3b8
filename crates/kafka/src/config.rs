//! How the clients are set up: what was configured, what the design fixes, and what follows from the topics.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;

/// Largest record batch that a Kafka broker takes by default (`max.message.bytes`).
pub const MESSAGE_MAX_BYTES_DEFAULT: usize = 1_048_588;

/// librdkafka's own default: larger batches bring no speed.
const BATCH_BYTES_MAX: usize = 1_000_000;

/// librdkafka's bounds of `message.max.bytes`.
const CLIENT_RECORD_BYTES: (usize, usize) = (1_000, 1_000_000_000);

/// Room for what librdkafka counts beside the record itself when it checks the size.
const CLIENT_RECORD_SLACK_BYTES: usize = 1_024;

/// How record batches are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip.
    Gzip,
    /// Snappy.
    Snappy,
    /// LZ4: costs the least for what it saves.
    #[default]
    Lz4,
    /// Zstandard.
    Zstd,
}

impl Compression {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::None, Self::Gzip, Self::Snappy, Self::Lz4, Self::Zstd];

    /// The word used in the configuration, ours and librdkafka's.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Snappy => "snappy",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }

    /// The compression of that word.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|compression| compression.as_str() == word)
    }
}

/// What was configured. `Debug` names the properties and shows no value.
#[derive(Clone)]
pub struct KafkaConfig {
    /// `host:port`, comma-separated.
    pub bootstrap_servers: String,
    /// The name under which brokers log and limit this client.
    pub client_id: String,
    /// librdkafka's settings as they are, except those that [`validate`](crate::validate) refuses.
    pub properties: BTreeMap<String, String>,
    /// How batches are compressed.
    pub compression: Compression,
    /// Largest record in bytes for topics whose own limit cannot be read.
    pub message_max_bytes: usize,
    /// Upper bound of the payloads in the client's queue, in bytes. No record larger than this can be published.
    pub queue_bytes: usize,
    /// Upper bound of the records in the client's queue.
    pub queue_messages: usize,
    /// How long a look-up of topics may take.
    pub look_up_within: Duration,
}

impl KafkaConfig {
    /// The defaults for these brokers.
    #[must_use]
    pub fn new(bootstrap_servers: impl Into<String>) -> Self {
        Self {
            bootstrap_servers: bootstrap_servers.into(),
            client_id: "outboxd".to_owned(),
            properties: BTreeMap::new(),
            compression: Compression::default(),
            message_max_bytes: MESSAGE_MAX_BYTES_DEFAULT,
            queue_bytes: 64 * 1024 * 1024,
            queue_messages: 100_000,
            look_up_within: Duration::from_secs(5),
        }
    }

    /// The settings of the client that publishes.
    pub(crate) fn producer(&self, limits: ClientLimits) -> ClientConfig {
        let mut config = self.connecting();
        // Applied after the passthrough: these are the promises, and `validate` has refused every attempt to set them.
        config
            .set("enable.idempotence", "true")
            .set("acks", "all")
            // The most that keeps the order of an idempotent producer.
            .set("max.in.flight.requests.per.connection", "5")
            // librdkafka never gives up a record by itself: a record that timed out in an outage would be overtaken.
            .set("message.timeout.ms", "0")
            // Where the Java client puts a key, so that streams of both can be joined.
            .set("partitioner", "murmur2_random")
            .set("compression.type", self.compression.as_str())
            .set("batch.size", limits.batch_bytes.to_string())
            .set("message.max.bytes", limits.client_record_bytes().to_string())
            .set("queue.buffering.max.kbytes", (self.queue_bytes / 1024).max(1).to_string())
            .set("queue.buffering.max.messages", self.queue_messages.to_string());
        config
    }

    /// The settings of a client that only looks things up: no producer id, nothing is published through it.
    pub(crate) fn connecting(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            // Waits this long for more records of a batch: under load batches fill anyway, without load it is latency.
            .set("linger.ms", "2")
            .set("socket.keepalive.enable", "true")
            // A frozen connection is given up after this; the broker's own wait for its replicas ends before.
            .set("socket.timeout.ms", "20000")
            .set("request.timeout.ms", "15000")
            .set("socket.connection.setup.timeout.ms", "10000")
            // Back within a moment after an outage; librdkafka's default is 10 s.
            .set("reconnect.backoff.max.ms", "1000")
            // How long a topic that vanished is waited for before its records are given back (default 30 s).
            .set("topic.metadata.propagation.max.ms", "5000")
            .set("log.connection.close", "false")
            .set("enable.metrics.push", "false");
        config.extend(self.properties.clone());
        config
            .set("bootstrap.servers", self.bootstrap_servers.as_str())
            .set("client.id", self.client_id.as_str())
            .set("allow.auto.create.topics", "false");
        let level = if self.properties.contains_key("debug") {
            RDKafkaLogLevel::Debug
        } else {
            RDKafkaLogLevel::Info
        };
        config.set_log_level(level);
        config
    }

    /// The settings of a client that reads. It joins no group and commits nothing.
    pub(crate) fn reading(&self) -> ClientConfig {
        let mut config = self.connecting();
        // librdkafka wants a group even when partitions are assigned by hand.
        config
            .set("group.id", format!("{}-reader", self.client_id))
            .set("enable.auto.commit", "false")
            .set("auto.offset.reset", "error")
            .set("isolation.level", "read_committed");
        config
    }

    /// The largest record that can be published to a topic with this limit.
    pub(crate) fn record_max_bytes(&self, topic_max_bytes: usize) -> usize {
        // The queue counts payloads only, so a record of this size always fits into an empty queue.
        topic_max_bytes.min(self.queue_bytes / 1024 * 1024)
    }
}

impl fmt::Debug for KafkaConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaConfig")
            .field("bootstrap_servers", &self.bootstrap_servers)
            .field("client_id", &self.client_id)
            .field("properties", &self.properties.keys().collect::<Vec<_>>())
            .field("compression", &self.compression)
            .field("message_max_bytes", &self.message_max_bytes)
            .field("queue_bytes", &self.queue_bytes)
            .field("queue_messages", &self.queue_messages)
            .field("look_up_within", &self.look_up_within)
            .finish()
    }
}

/// What a client's settings owe to the topics that it writes to. librdkafka has one batch size and one record size for
/// all topics: a batch must fit into the smallest topic, a record of the largest must be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ClientLimits {
    /// No batch of more than one record is larger than this.
    pub(crate) batch_bytes: usize,
    /// The largest record that is taken.
    pub(crate) record_bytes: usize,
}

impl ClientLimits {
    /// What fits the configuration when no topic has been seen.
    pub(crate) fn of(config: &KafkaConfig) -> Self {
        let record_bytes = config.record_max_bytes(config.message_max_bytes);
        Self { batch_bytes: record_bytes.min(BATCH_BYTES_MAX), record_bytes }
    }

    /// Adjusted to one more topic.
    #[must_use]
    pub(crate) fn with_topic(self, topic_max_bytes: usize) -> Self {
        Self {
            batch_bytes: self.batch_bytes.min(topic_max_bytes).max(1),
            record_bytes: self.record_bytes.max(topic_max_bytes),
        }
    }

    fn client_record_bytes(self) -> usize {
        let (min, max) = CLIENT_RECORD_BYTES;
        self.record_bytes.saturating_add(CLIENT_RECORD_SLACK_BYTES).clamp(min, max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_names_properties_and_shows_no_value() {
        let mut config = KafkaConfig::new("localhost:9092");
        config.properties.insert("ssl.key.pem".into(), "canary-1".into());
        config.properties.insert("sasl.username".into(), "canary-2".into());
        let shown = format!("{config:?}");
        assert!(shown.contains("ssl.key.pem") && !shown.contains("canary"), "{shown}");
    }

    #[test]
    fn a_batch_fits_the_smallest_topic_and_a_record_the_largest() {
        let limits = ClientLimits::of(&KafkaConfig::new("b:1")).with_topic(20_000).with_topic(5_000_000);
        assert_eq!(limits, ClientLimits { batch_bytes: 20_000, record_bytes: 5_000_000 });
        assert_eq!(limits.with_topic(1_048_588), limits);
    }

    #[test]
    fn a_topic_never_takes_more_than_the_queue_holds() {
        let config = KafkaConfig { queue_bytes: 2_000_000, ..KafkaConfig::new("b:1") };
        assert!(config.record_max_bytes(100_000_000) <= 2_000_000);
        assert_eq!(config.record_max_bytes(1_000), 1_000);
    }
}
