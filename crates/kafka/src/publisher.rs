//! The port itself: a librdkafka producer that is fed in order and reports in order.
//!
//! Reports come from librdkafka's polling thread through an unbounded channel. It holds at most one report for each record
//! in the client, and those are bounded by `queue_messages` and by what the loop keeps in flight, so it needs no bound of
//! its own; when that bound is reached, `enqueue` says [`EnqueueError::Full`].

use std::fmt;
use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use outboxd_core::record::shortened;
use outboxd_core::{DeliveryError, Fault, Receipt, Record, Refusal};
use outboxd_engine::{EnqueueError, Publisher, PublisherStats, Report, Token, TopicState};
use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError;
use rdkafka::message::{DeliveryResult, Header, Message as _, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer as _, ProducerContext, PurgeConfig, ThreadedProducer};
use rdkafka::types::RDKafkaErrorCode;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::spawn_blocking;

use crate::config::{ClientLimits, KafkaConfig};
use crate::connection::{Connection, ConnectionError, end_client};
use crate::fault::delivery_error;
use crate::properties::{PropertyProblem, creation_reason, validate};
use crate::topics::Topics;

/// At most so many reports are taken at once.
const REPORTS_AT_ONCE: usize = 10_000;

/// Why there is no publisher.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// The configuration is refused; all of its problems.
    #[error("{} problems in the Kafka configuration, the first: {}", .0.len(), .0[0])]
    Configuration(Vec<PropertyProblem>),
    /// librdkafka made no client.
    #[error("create Kafka client: {0}")]
    Client(String),
}

/// Publishes to Kafka.
pub struct KafkaPublisher {
    config: Arc<KafkaConfig>,
    connection: Connection,
    topics: Topics,
    /// `None` before the first renewal, once closed, and after a renewal that failed.
    client: Option<Client>,
}

/// One librdkafka producer and what belongs to it. A renewal replaces all of it, so a report of an old record has no way
/// to reach the loop.
struct Client {
    producer: ThreadedProducer<Reporter>,
    sender: UnboundedSender<Report>,
    reports: UnboundedReceiver<Report>,
    flight: Arc<Flight>,
    limits: ClientLimits,
}

/// What the client holds.
#[derive(Default)]
struct Flight {
    records: AtomicU64,
    bytes: AtomicU64,
}

/// Called by librdkafka's polling thread.
pub(crate) struct Reporter {
    connection: Connection,
    reports: UnboundedSender<Report>,
    flight: Arc<Flight>,
}

impl KafkaPublisher {
    /// A publisher that connects with its first [`Publisher::renew`]: whoever stands by has no producer. Brokers that are down are
    /// no error.
    ///
    /// # Errors
    /// [`CreateError`] if the configuration can never work.
    pub fn new(config: KafkaConfig) -> Result<Self, CreateError> {
        let problems = validate(&config);
        if !problems.is_empty() {
            return Err(CreateError::Configuration(problems));
        }
        let config = Arc::new(config);
        let connection = Connection::default();
        let limits = ClientLimits::of(&config);
        // Made and thrown away: only librdkafka knows whether it can read a certificate.
        Client::create(&config, &connection, limits).map_err(CreateError::Client)?.discard();
        let topics = Topics::new(Arc::clone(&config), connection.clone(), limits);
        Ok(Self { config, connection, topics, client: None })
    }

    /// The last trouble with the connection, or `None` once a broker has answered since.
    #[must_use]
    pub fn last_error(&self) -> Option<ConnectionError> {
        self.connection.last_error()
    }

    async fn discard(&mut self) {
        if let Some(client) = self.client.take() {
            end_client(move || client.discard()).await;
        }
    }
}

impl Client {
    fn create(config: &KafkaConfig, connection: &Connection, limits: ClientLimits) -> Result<Self, String> {
        let (sender, reports) = unbounded_channel();
        let flight = Arc::new(Flight::default());
        let reporter =
            Reporter { connection: connection.clone(), reports: sender.clone(), flight: Arc::clone(&flight) };
        let producer =
            config.producer(limits).create_with_context(reporter).map_err(|error| creation_reason(&error))?;
        Ok(Self { producer, sender, reports, flight, limits })
    }

    fn enqueue(&self, token: Token, record: Record) -> Result<(), EnqueueError> {
        if record.size_bytes() > self.limits.record_bytes {
            // A topic that takes it was seen after this client was made; `must_renew` says so too.
            let code = format!("the client was made for records of {} bytes", self.limits.record_bytes);
            return Err(EnqueueError::Fault(DeliveryError { fault: Fault::FatalProducer, code }));
        }
        // Counted before it is handed over: the report may come at once.
        self.flight.entered(bytes_of(&record));
        let handed_over = self.producer.send(BaseRecord {
            topic: &record.topic,
            partition: record.partition,
            payload: record.payload.as_deref(),
            key: record.key.as_deref(),
            // The client's clock at this moment, which is the time of publishing.
            timestamp: None,
            headers: headers_of(&record),
            delivery_opaque: opaque_of(token),
        });
        let Err((error, _)) = handed_over else { return Ok(()) };
        self.flight.left(bytes_of(&record));
        let error = match not_enqueued(&error, record) {
            NotEnqueued::Answer(error) => return Err(error),
            NotEnqueued::Topic(error) => error,
        };
        // librdkafka knows already what it would find out by sending: an answer about this topic, and no reason for
        // the loop to stop the others.
        let _heard_while_the_client_lives = self.sender.send(Report { token, result: Err(error) });
        Ok(())
    }

    /// Throws away what is queued and in flight; returns when nothing more of it can be sent.
    fn discard(self) {
        // At once, also if a look-up still has a handle to it.
        self.producer.purge(PurgeConfig::default().queue().inflight());
        drop(self.producer);
    }
}

/// What becomes of a record that librdkafka did not take.
enum NotEnqueued {
    Answer(EnqueueError),
    /// The topic cannot be written to, as far as the client knows.
    Topic(DeliveryError),
}

fn not_enqueued(error: &KafkaError, record: Record) -> NotEnqueued {
    let answer = match error.rdkafka_error_code() {
        Some(RDKafkaErrorCode::QueueFull) => EnqueueError::Full(Box::new(record)),
        Some(code) => {
            let error = delivery_error(code);
            match error.fault {
                Fault::TopicUnknown | Fault::TopicUnauthorized => return NotEnqueued::Topic(error),
                Fault::TooLarge | Fault::InvalidRecord => {
                    EnqueueError::Refused(Refusal::Client { code: error.code })
                }
                _ => EnqueueError::Fault(error),
            }
        }
        // The topic's name holds a NUL byte.
        None => EnqueueError::Refused(Refusal::IllegalTopic { topic: shortened(&record.topic) }),
    };
    NotEnqueued::Answer(answer)
}

fn headers_of(record: &Record) -> Option<OwnedHeaders> {
    let count = record.headers.len() + record.own_headers.len();
    if count == 0 {
        return None;
    }
    let headers = OwnedHeaders::new_with_capacity(count);
    let headers = record.headers.iter().fold(headers, |headers, (name, value)| {
        headers.insert(Header { key: name, value: Some(value.as_ref()) })
    });
    Some(record.own_headers.iter().fold(headers, |headers, (name, value)| {
        headers.insert(Header { key: name, value: Some(value.as_bytes()) })
    }))
}

/// What librdkafka's queue counts of a record, more or less: it leaves headers out.
fn bytes_of(record: &Record) -> u64 {
    let bytes = record.key.as_ref().map_or(0, bytes::Bytes::len)
        + record.payload.as_ref().map_or(0, bytes::Bytes::len);
    bytes as u64
}

/// Tokens travel through librdkafka in the place of a pointer. (Does not compile where pointers are smaller.)
fn opaque_of(token: Token) -> usize {
    usize::from_ne_bytes(token.0.to_ne_bytes())
}

fn token_of(opaque: usize) -> Token {
    Token(u64::from_ne_bytes(opaque.to_ne_bytes()))
}

impl Flight {
    fn entered(&self, bytes: u64) {
        self.records.fetch_add(1, Ordering::AcqRel);
        self.bytes.fetch_add(bytes, Ordering::AcqRel);
    }

    fn left(&self, bytes: u64) {
        self.bytes.fetch_sub(bytes, Ordering::AcqRel);
        self.records.fetch_sub(1, Ordering::AcqRel);
    }
}

impl ClientContext for Reporter {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        self.connection.log(level, facility, line);
    }

    fn stats_raw(&self, _statistics: &[u8]) {}

    fn error(&self, error: KafkaError, reason: &str) {
        self.connection.error(error, reason);
    }
}

impl ProducerContext for Reporter {
    type DeliveryOpaque = usize;

    fn delivery(&self, delivered: &DeliveryResult<'_>, opaque: usize) {
        let (result, message) = match delivered {
            Ok(message) => {
                self.connection.answered();
                (Ok(Receipt { partition: message.partition(), offset: message.offset() }), message)
            }
            Err((error, message)) => {
                let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown);
                let error = delivery_error(code);
                if error.fault == Fault::TopicUnauthorized {
                    self.connection.topic_unauthorised(message.topic());
                }
                (Err(error), message)
            }
        };
        let bytes = message.key_len() + message.payload_len();
        // Nobody listens any more if the publisher was renewed or dropped.
        let _unheard = self.reports.send(Report { token: token_of(opaque), result });
        self.flight.left(bytes as u64);
    }
}

impl Publisher for KafkaPublisher {
    fn enqueue(&mut self, token: Token, record: Record) -> Result<(), EnqueueError> {
        match &self.client {
            Some(client) => client.enqueue(token, record),
            None => Err(EnqueueError::Fault(DeliveryError {
                fault: Fault::FatalProducer,
                code: "there is no client".to_owned(),
            })),
        }
    }

    async fn reports(&mut self, into: &mut Vec<Report>) {
        // Cancel safe because `recv_many` is.
        let taken = match &mut self.client {
            Some(client) => client.reports.recv_many(into, REPORTS_AT_ONCE).await,
            None => 0,
        };
        if taken == 0 {
            // Without a client no report can come until the next renewal.
            pending::<()>().await;
        }
    }

    fn look_up(
        &self,
        topics: Vec<String>,
    ) -> impl Future<Output = Vec<(String, TopicState)>> + Send + 'static {
        let producer = self.client.as_ref().map(|client| client.producer.clone());
        self.topics.look_up(producer, topics)
    }

    fn cluster(&self) -> impl Future<Output = Result<Option<String>, DeliveryError>> + Send + 'static {
        let producer = self.client.as_ref().map(|client| client.producer.clone());
        self.topics.cluster(producer)
    }

    fn must_renew(&self) -> bool {
        self.client.as_ref().is_none_or(|client| {
            client.limits != self.topics.limits() || client.producer.client().fatal_error().is_some()
        })
    }

    async fn renew(&mut self) {
        self.discard().await;
        let (config, connection) = (Arc::clone(&self.config), self.connection.clone());
        let limits = self.topics.limits();
        // Off the async threads: it reads its certificates.
        match spawn_blocking(move || Client::create(&config, &connection, limits)).await {
            Ok(Ok(client)) => {
                self.client = Some(client);
                self.topics.open();
            }
            Ok(Err(reason)) => {
                tracing::error!(target: "outboxd::publish", reason, "create Kafka client");
            }
            Err(error) => {
                tracing::error!(target: "outboxd::publish", %error, "create Kafka client");
            }
        }
    }

    async fn close(&mut self) {
        self.discard().await;
        self.topics.close().await;
    }

    fn stats(&self) -> PublisherStats {
        self.client.as_ref().map_or_else(PublisherStats::default, |client| PublisherStats {
            queue_messages: client.flight.records.load(Ordering::Acquire),
            queue_bytes: client.flight.bytes.load(Ordering::Acquire),
        })
    }
}

impl fmt::Debug for KafkaPublisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaPublisher").field("config", &self.config).finish_non_exhaustive()
    }
}
