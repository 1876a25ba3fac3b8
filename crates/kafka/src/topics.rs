//! Look-ups: whether a topic can be written to, and what it takes.
//!
//! Nothing that was found is kept here; how long it is believed is the loop's business. What is kept are the limits that a
//! client must be made for, which only ever get stricter, and the client that reads the topics' configuration.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use outboxd_core::record::topic_is_legal;
use outboxd_core::{DeliveryError, Fault, HoldReason, TopicInfo};
use outboxd_engine::TopicState;
use rdkafka::admin::{AdminClient, AdminOptions, OwnedResourceSpecifier, ResourceSpecifier};
use rdkafka::error::IsError as _;
use rdkafka::metadata::MetadataTopic;
use rdkafka::producer::{Producer as _, ThreadedProducer};
use rdkafka::types::RDKafkaErrorCode;
use tokio::task::spawn_blocking;
use tokio::time::Instant;

use crate::config::{ClientLimits, KafkaConfig};
use crate::connection::{Connection, end_client};
use crate::fault::delivery_error;
use crate::publisher::Reporter;

/// So many topics are asked for by name; more are looked for in the metadata of the cluster first.
const BY_NAME_MAX: usize = 20;

/// Looks topics up.
pub(crate) struct Topics {
    config: Arc<KafkaConfig>,
    connection: Connection,
    limits: Arc<Mutex<ClientLimits>>,
    configurations: Arc<Configurations>,
}

/// What the metadata says of a topic.
enum Seen {
    Exists { partitions: i32 },
    Not(TopicState),
}

impl Topics {
    pub(crate) fn new(config: Arc<KafkaConfig>, connection: Connection, limits: ClientLimits) -> Self {
        let configurations = Arc::new(Configurations {
            config: Arc::clone(&config),
            connection: connection.clone(),
            state: Mutex::new(State::Closed),
        });
        Self { config, connection, limits: Arc::new(Mutex::new(limits)), configurations }
    }

    /// From now on topics' configurations may be read, with a client that is made when it is needed first.
    pub(crate) fn open(&self) {
        let mut state = self.configurations.state();
        if matches!(*state, State::Closed) {
            *state = State::Open(None);
        }
    }

    /// Ends the client that reads configurations. A look-up that is still under way makes no other.
    pub(crate) async fn close(&self) {
        let closed = std::mem::replace(&mut *self.configurations.state(), State::Closed);
        end_client(move || drop(closed)).await;
    }

    /// What a client must be made for, after all topics that were seen.
    pub(crate) fn limits(&self) -> ClientLimits {
        *self.limits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for the topics' metadata *through the producer's own client*: it publishes only to topics that it knows itself,
    /// and one that it has found missing stays so for minutes unless it is asked about it.
    pub(crate) fn look_up(
        &self,
        producer: Option<ThreadedProducer<Reporter>>,
        topics: Vec<String>,
    ) -> impl Future<Output = Vec<(String, TopicState)>> + Send + 'static {
        let (config, connection) = (Arc::clone(&self.config), self.connection.clone());
        let (limits, configurations) = (Arc::clone(&self.limits), Arc::clone(&self.configurations));
        let until = Instant::now() + config.look_up_within;
        async move {
            let seen = match producer {
                Some(producer) => {
                    let (connection, topics) = (connection, topics.clone());
                    spawn_blocking(move || metadata_of(&producer, &connection, &topics, until)).await.ok()
                }
                None => None,
            };
            let Some(seen) = seen else {
                let nothing = || TopicState::Unreachable(no_client());
                return topics.into_iter().map(|topic| (topic, nothing())).collect();
            };
            let existing: Vec<&str> = topics
                .iter()
                .zip(&seen)
                .filter(|(_, seen)| matches!(seen, Seen::Exists { .. }))
                .map(|(topic, _)| topic.as_str())
                .collect();
            let max_bytes = configurations.max_message_bytes(&existing, until).await;
            let mut max_bytes = max_bytes.into_iter();
            let state_of = |seen| match seen {
                Seen::Not(state) => state,
                Seen::Exists { partitions } => {
                    let topic_max_bytes = max_bytes.next().flatten().unwrap_or(config.message_max_bytes);
                    let max_message_bytes = config.record_max_bytes(topic_max_bytes);
                    let mut limits = limits.lock().unwrap_or_else(PoisonError::into_inner);
                    *limits = limits.with_topic(max_message_bytes);
                    TopicState::Writable(TopicInfo { partitions, max_message_bytes })
                }
            };
            let states: Vec<_> = seen.into_iter().map(state_of).collect();
            topics.into_iter().zip(states).collect()
        }
    }
}

fn no_client() -> DeliveryError {
    DeliveryError { fault: Fault::FatalProducer, code: "there is no client".to_owned() }
}

/// In the order of `topics`. One request a topic, one after the other: each is answered within a round trip. Many are looked for in the
/// metadata of the whole cluster first, which is one request; only those that it does not show to exist are asked for by name.
fn metadata_of(
    producer: &ThreadedProducer<Reporter>,
    connection: &Connection,
    topics: &[String],
    until: Instant,
) -> Vec<Seen> {
    // Below a millisecond librdkafka would wait for ever.
    let remaining = || until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    let cluster = (topics.len() > BY_NAME_MAX)
        .then(|| producer.client().fetch_metadata(None, remaining()).ok())
        .flatten();
    let in_cluster: HashMap<&str, &MetadataTopic> =
        cluster.iter().flat_map(|cluster| cluster.topics()).map(|found| (found.name(), found)).collect();
    let look = |topic: &String| {
        // librdkafka makes no handle for some illegal names, and rdkafka panics then.
        if !topic_is_legal(topic) {
            return Seen::Not(TopicState::Held(HoldReason::IllegalTopic));
        }
        if let Some(found) = in_cluster.get(topic.as_str())
            && let exists @ Seen::Exists { .. } = seen_as(found, topic, connection)
        {
            connection.answered();
            return exists;
        }
        match producer.client().fetch_metadata(Some(topic), remaining()) {
            Ok(metadata) => {
                connection.answered();
                let found = metadata.topics().iter().find(|found| found.name() == topic);
                found.map_or(Seen::Not(TopicState::Held(HoldReason::TopicUnknown)), |found| {
                    seen_as(found, topic, connection)
                })
            }
            Err(error) => Seen::Not(TopicState::Unreachable(connection.unreachable(&error))),
        }
    };
    topics.iter().map(look).collect()
}

fn seen_as(found: &MetadataTopic, topic: &str, connection: &Connection) -> Seen {
    let partitions = i32::try_from(found.partitions().len()).unwrap_or(i32::MAX);
    match found.error().filter(|error| error.is_error()).map(RDKafkaErrorCode::from) {
        None if connection.is_topic_unauthorised(topic) => {
            Seen::Not(TopicState::Held(HoldReason::TopicUnauthorized))
        }
        None if partitions > 0 => Seen::Exists { partitions },
        None | Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => {
            Seen::Not(TopicState::Held(HoldReason::TopicUnknown))
        }
        Some(RDKafkaErrorCode::TopicAuthorizationFailed) => {
            Seen::Not(TopicState::Held(HoldReason::TopicUnauthorized))
        }
        Some(RDKafkaErrorCode::InvalidTopic) => Seen::Not(TopicState::Held(HoldReason::IllegalTopic)),
        // Being made just now, or without a leader: not known yet.
        Some(code) => Seen::Not(TopicState::Unreachable(delivery_error(code))),
    }
}

/// Reads the topics' configuration, for which librdkafka needs a client of its own. Made when it is needed first, and never
/// for a relay that does not lead.
pub(crate) struct Configurations {
    config: Arc<KafkaConfig>,
    connection: Connection,
    state: Mutex<State>,
}

enum State {
    Closed,
    Open(Option<Arc<AdminClient<Connection>>>),
}

impl Configurations {
    /// Each topic's `max.message.bytes`, in the order of `topics`; `None` where the cluster does not tell (no
    /// `DESCRIBE_CONFIGS`, or a broker without that request). Never fails: the limit then comes from the configuration.
    async fn max_message_bytes(self: Arc<Self>, topics: &[&str], until: Instant) -> Vec<Option<usize>> {
        if topics.is_empty() {
            return Vec::new();
        }
        let unknown = vec![None; topics.len()];
        let Ok(Some(client)) = spawn_blocking(move || self.client()).await else { return unknown };
        let remaining = until.saturating_duration_since(Instant::now());
        // A cluster that answers the metadata answers this too; a moment more is not worth holding messages for.
        let within = remaining.clamp(Duration::from_secs(1), Duration::from_secs(2));
        let options = AdminOptions::new().request_timeout(Some(within));
        let resources: Vec<_> = topics.iter().map(|topic| ResourceSpecifier::Topic(topic)).collect();
        let Ok(described) = client.describe_configs(&resources, &options).await else { return unknown };
        let limits: HashMap<&str, usize> = described
            .iter()
            .flatten()
            .filter_map(|resource| match &resource.specifier {
                OwnedResourceSpecifier::Topic(name) => {
                    Some((name.as_str(), resource.get("max.message.bytes")?.value.as_ref()?.parse().ok()?))
                }
                _ => None,
            })
            .collect();
        topics.iter().map(|topic| limits.get(topic).copied()).collect()
    }

    fn client(&self) -> Option<Arc<AdminClient<Connection>>> {
        match &mut *self.state() {
            State::Closed => None,
            State::Open(client) => {
                if client.is_none() {
                    let made = self.config.connecting().create_with_context(self.connection.clone());
                    *client = made.ok().map(Arc::new);
                }
                client.clone()
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
