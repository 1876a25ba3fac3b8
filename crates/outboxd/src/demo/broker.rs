//! Kafka: a broker inside this process, or somebody's servers.
//!
//! What was found out about librdkafka's mock cluster (2.12.1), which the story builds on:
//!
//! - A refusal (`refuse_produce`) answers one produce *request*, whatever topic and partitions are in it: every record of
//!   its batch fails at once with that code, librdkafka does not try again (tried: too large, invalid record, policy
//!   violation) and its idempotent producer goes on after about 100 ms with a new epoch. So a message is refused for its
//!   own sake only if it is alone in two requests: the first makes it a suspect, the second is its trial.
//! - `go_down` closes the port and every connection; records in flight stay with the client, which is back within its
//!   `reconnect.backoff.max.ms` after `come_up`. The port stays the same and the records are kept.
//! - The mock checks sequence numbers of transactional producers only: a batch whose answer was lost in `go_down` is
//!   appended twice when the client sends it again (1 of 207 records in a run; a real broker drops the second). The
//!   consumer absorbs it like any other duplicate.
//! - It keeps 5 MB of a partition, or 100,000 *batches*, and drops the oldest without a word but for the low watermark:
//!   700 records of 10 kB were acknowledged, and 502 of them were there. [`Written::dropped`] looks.
//! - The sockets that it accepts are inherited by the children of its process, so `go_down` does not reach a client that
//!   connected before a relay was started: nobody answers it, and the connection stays open. The consumer gives such a
//!   connection up after `socket.timeout.ms`; with librdkafka's usual 20 s or 60 s it was that much later than the relay.
//! - Asking for a topic does not create it for a client with `allow.auto.create.topics=false`.
//! - It names a controller that does not exist, so a request for a topic's configuration runs into its timeout: a relay
//!   takes two seconds longer until it publishes its first message than with a real broker.

use std::time::Duration;

use anyhow::Context as _;
use outboxd_kafka::{KafkaConfig, MockBroker, MockRefusal};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};

use super::shop::Topics;

/// Partitions of each topic.
pub(crate) const PARTITIONS: i32 = 3;

const WITHIN: Duration = Duration::from_secs(10);

/// Kafka.
#[derive(Debug)]
pub(crate) struct Broker {
    /// How to get there.
    pub(crate) kafka: KafkaConfig,
    /// The demo's topics.
    pub(crate) topics: Topics,
    /// The broker in this process, if it is one.
    pub(crate) mock: Option<MockBroker>,
}

/// What the broker has written.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Written {
    /// Records ever written.
    pub(crate) records: u64,
    /// Records of those that are gone.
    pub(crate) dropped: u64,
}

impl Broker {
    /// Starts one in this process.
    pub(crate) fn in_process() -> anyhow::Result<Self> {
        let mock = MockBroker::start()?;
        let topics = Topics { orders: "orders".to_owned(), payments: "payments".to_owned() };
        let mut kafka = KafkaConfig::new(mock.bootstrap_servers());
        // For the consumer, whose connections the relays inherit: see above.
        kafka.properties.insert("socket.timeout.ms".to_owned(), "1500".to_owned());
        Ok(Self { kafka, topics, mock: Some(mock) })
    }

    /// Somebody's servers; `run` keeps the topics apart from all others.
    pub(crate) fn servers(kafka: KafkaConfig, run: &str) -> Self {
        let named = |what: &str| format!("outboxd-demo-{run}.{what}");
        Self { kafka, topics: Topics { orders: named("orders"), payments: named("payments") }, mock: None }
    }

    /// Creates the topics.
    pub(crate) async fn create_topics(&self) -> anyhow::Result<()> {
        if let Some(mock) = &self.mock {
            for topic in self.topics.all() {
                mock.create_topic(topic, PARTITIONS)?;
            }
            return Ok(());
        }
        const DOING: &str = "create the demo's topics";
        let admin: AdminClient<DefaultClientContext> = self.client().create().context(DOING)?;
        let topics =
            self.topics.all().map(|topic| NewTopic::new(topic, PARTITIONS, TopicReplication::Fixed(-1)));
        let created = admin.create_topics(&topics, &options()).await.context(DOING)?;
        for result in created {
            result.map_err(|(topic, code)| anyhow::anyhow!("{topic}: {code}")).context(DOING)?;
        }
        Ok(())
    }

    /// Takes them out again.
    pub(crate) async fn delete_topics(&self) -> anyhow::Result<()> {
        if self.mock.is_some() {
            return Ok(());
        }
        const DOING: &str = "delete the demo's topics";
        let admin: AdminClient<DefaultClientContext> = self.client().create().context(DOING)?;
        let deleted = admin.delete_topics(&self.topics.all(), &options()).await.context(DOING)?;
        for result in deleted {
            result.map_err(|(topic, code)| anyhow::anyhow!("{topic}: {code}")).context(DOING)?;
        }
        Ok(())
    }

    /// What is in the topics, by the broker's own account.
    pub(crate) async fn written(&self) -> anyhow::Result<Written> {
        let mut settings = self.client();
        settings.set("group.id", "outboxd-demo-watermarks");
        let topics = self.topics.clone();
        let looked = tokio::task::spawn_blocking(move || -> anyhow::Result<Written> {
            let client: BaseConsumer = settings.create()?;
            let mut written = Written::default();
            for topic in topics.all() {
                for partition in 0..PARTITIONS {
                    let (low, high) = client.fetch_watermarks(topic, partition, WITHIN)?;
                    written.records += u64::try_from(high).unwrap_or(0);
                    written.dropped += u64::try_from(low).unwrap_or(0);
                }
            }
            Ok(written)
        });
        looked.await?.context("ask the broker what it has")
    }

    /// Has the broker refuse the next two produce requests: of a message that is published alone, the attempt that makes
    /// it a suspect and its trial.
    pub(crate) fn refuse_next_message(&self) -> anyhow::Result<()> {
        Ok(self.obedient()?.refuse_produce(&[MockRefusal::InvalidRecord, MockRefusal::InvalidRecord])?)
    }

    /// How it is called on the screen.
    pub(crate) fn shown(&self) -> String {
        let servers = &self.kafka.bootstrap_servers;
        match self.mock {
            Some(_) => format!("Kafka in this process (librdkafka's mock cluster) at {servers}, over TCP"),
            None => format!("Kafka at {servers}, topics {} and {}", self.topics.orders, self.topics.payments),
        }
    }

    /// Closes its port and every connection.
    pub(crate) fn go_away(&self) -> anyhow::Result<()> {
        Ok(self.obedient()?.go_down()?)
    }

    /// Is there again.
    pub(crate) fn come_back(&self) -> anyhow::Result<()> {
        Ok(self.obedient()?.come_up()?)
    }

    fn obedient(&self) -> anyhow::Result<&MockBroker> {
        self.mock.as_ref().context("this broker takes no orders")
    }

    fn client(&self) -> ClientConfig {
        let mut settings = ClientConfig::new();
        settings.extend(self.kafka.properties.clone());
        settings.set("bootstrap.servers", &self.kafka.bootstrap_servers).set("client.id", "outboxd-demo");
        settings
    }
}

fn options() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(WITHIN)).operation_timeout(Some(WITHIN))
}
