//! A Kafka broker inside the process: librdkafka's mock cluster, which speaks the real protocol over real TCP.
//!
//! For the demo and for faults that a real broker cannot be asked for. It keeps 5 MB or 100,000 records of a partition and
//! drops the oldest silently, knows no access control and no topic configuration. A topic that does not
//! exist is created for a client that allows it, which the relay's does not: create what you need first.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

/// What the broker answers to a produce request that it refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MockRefusal {
    /// A record in the batch is not acceptable: the fault of one record, of which the client cannot tell which.
    InvalidRecord,
    /// The batch is too large.
    TooLarge,
    /// Too few replicas are in sync; librdkafka retries by itself.
    NotEnoughReplicas,
    /// The sequence numbers have a gap: fatal for the client.
    OutOfOrderSequence,
    /// The principal may not write to the topic.
    TopicUnauthorized,
    /// The connection breaks instead of an answer.
    Disconnect,
}

impl From<MockRefusal> for RDKafkaRespErr {
    fn from(refusal: MockRefusal) -> Self {
        match refusal {
            MockRefusal::InvalidRecord => Self::RD_KAFKA_RESP_ERR_INVALID_RECORD,
            MockRefusal::TooLarge => Self::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE,
            MockRefusal::NotEnoughReplicas => Self::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS,
            MockRefusal::OutOfOrderSequence => Self::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER,
            MockRefusal::TopicUnauthorized => Self::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED,
            MockRefusal::Disconnect => Self::RD_KAFKA_RESP_ERR__TRANSPORT,
        }
    }
}

/// Why the mock did not do it.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{doing}: {reason}")]
pub struct MockError {
    doing: &'static str,
    reason: String,
}

/// One broker. Stopped when it is dropped.
#[derive(Debug)]
pub struct MockBroker {
    bootstrap_servers: String,
    orders: Option<Sender<Order>>,
    thread: Option<JoinHandle<()>>,
}

type Cluster = MockCluster<'static, DefaultProducerContext>;
type Order = Box<dyn FnOnce(&Cluster) + Send>;

const ALL_BROKERS: i32 = -1;

impl MockBroker {
    /// Starts a broker on a port of its own on the loopback interface.
    ///
    /// # Errors
    /// [`MockError`] if it cannot listen.
    pub fn start() -> Result<Self, MockError> {
        const DOING: &str = "start the in-process broker";
        let (orders, to_do) = channel();
        let (started, answer) = channel();
        // rdkafka's handle may not move between threads: it stays on this one, and orders come to it.
        let thread = std::thread::Builder::new()
            .name("mock broker".to_owned())
            .spawn(move || run(&started, &to_do))
            .map_err(|error| MockError { doing: DOING, reason: error.to_string() })?;
        let started = answer.recv().unwrap_or_else(|_| Err("its thread ended".to_owned()));
        let bootstrap_servers = started.map_err(|reason| MockError { doing: DOING, reason })?;
        Ok(Self { bootstrap_servers, orders: Some(orders), thread: Some(thread) })
    }

    /// Where it listens.
    #[must_use]
    pub fn bootstrap_servers(&self) -> &str {
        &self.bootstrap_servers
    }

    /// Creates a topic.
    ///
    /// # Errors
    /// [`MockError`] if it exists already.
    pub fn create_topic(&self, topic: &str, partitions: i32) -> Result<(), MockError> {
        let topic = topic.to_owned();
        self.order("create topic", move |cluster| cluster.create_topic(&topic, partitions, 1))
    }

    /// Answers the next produce requests, one after the other, with these refusals. Requests count, not records.
    ///
    /// # Errors
    /// [`MockError`] if the broker has ended.
    pub fn refuse_produce(&self, refusals: &[MockRefusal]) -> Result<(), MockError> {
        let refusals: Vec<RDKafkaRespErr> = refusals.iter().map(|refusal| (*refusal).into()).collect();
        self.order("refuse produce requests", move |cluster| {
            cluster.request_errors(RDKafkaApiKey::Produce, &refusals);
            Ok(())
        })
    }

    /// Takes back the refusals that were not used.
    ///
    /// # Errors
    /// [`MockError`] if the broker has ended.
    pub fn accept_produce(&self) -> Result<(), MockError> {
        self.order("accept produce requests", |cluster| {
            cluster.clear_request_errors(RDKafkaApiKey::Produce);
            Ok(())
        })
    }

    /// Breaks all connections and accepts none.
    ///
    /// # Errors
    /// [`MockError`] if the broker has ended.
    pub fn go_down(&self) -> Result<(), MockError> {
        self.order("take the broker down", |cluster| cluster.broker_down(ALL_BROKERS))
    }

    /// Accepts connections again. Records are kept.
    ///
    /// # Errors
    /// [`MockError`] if the broker has ended.
    pub fn come_up(&self) -> Result<(), MockError> {
        self.order("bring the broker up", |cluster| cluster.broker_up(ALL_BROKERS))
    }

    /// Answers every request this much later.
    ///
    /// # Errors
    /// [`MockError`] if the broker has ended.
    pub fn answer_after(&self, delay: Duration) -> Result<(), MockError> {
        self.order("delay the broker's answers", move |cluster| {
            cluster.broker_round_trip_time(ALL_BROKERS, delay)
        })
    }

    /// Has the broker's thread do something and waits until it is done.
    fn order(
        &self,
        doing: &'static str,
        order: impl FnOnce(&Cluster) -> Result<(), rdkafka::error::KafkaError> + Send + 'static,
    ) -> Result<(), MockError> {
        let (done, answer) = channel();
        let order: Order = Box::new(move |cluster| {
            let _asker_gone = done.send(order(cluster));
        });
        let sent = self.orders.as_ref().is_some_and(|orders| orders.send(order).is_ok());
        let answer = if sent { answer.recv().ok() } else { None };
        match answer {
            Some(Ok(())) => Ok(()),
            Some(Err(error)) => Err(MockError { doing, reason: error.to_string() }),
            None => Err(MockError { doing, reason: "the broker has ended".to_owned() }),
        }
    }
}

fn run(started: &Sender<Result<String, String>>, orders: &Receiver<Order>) {
    match MockCluster::new(1) {
        Ok(cluster) => {
            let _starter_gone = started.send(Ok(cluster.bootstrap_servers()));
            while let Ok(order) = orders.recv() {
                order(&cluster);
            }
        }
        Err(error) => {
            let _starter_gone = started.send(Err(error.to_string()));
        }
    }
}

impl Drop for MockBroker {
    fn drop(&mut self) {
        drop(self.orders.take());
        if let Some(thread) = self.thread.take() {
            // It ends because there are no more orders; a panic in it was reported by its own hook.
            let _ended = thread.join();
        }
    }
}
