//! A broker under a test's control.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use outboxd_core::record::REPLAY_HEADER;
use outboxd_core::{DeliveryError, Fault, HoldReason, Receipt, Record, TopicInfo};
use outboxd_engine::{EnqueueError, Publisher, PublisherStats, Report, Token, TopicState};
use tokio::sync::Notify;

/// Records that travel in one batch.
const BATCH: usize = 10;

/// A record in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivered {
    /// The `id` header.
    pub id: String,
    /// Topic.
    pub topic: String,
    /// Key.
    pub key: Option<String>,
    /// Payload.
    pub payload: Option<String>,
    /// Whether nothing else was with the client when it was written.
    pub alone: bool,
    /// The replay that it is a copy of.
    pub replay: Option<String>,
}

#[derive(Debug, Default)]
struct State {
    topics: HashMap<String, TopicState>,
    log: Vec<Delivered>,
    silent: bool,
    /// Topics that acknowledge nothing, as one whose partition has no leader.
    silent_topics: Vec<String>,
    unreachable: bool,
    mute_look_ups: bool,
    /// Records with this payload fail whatever batch they travel in.
    poison: Vec<String>,
    /// Records with this payload fail, and only they, so often.
    refuse: HashMap<String, (Fault, u32)>,
    break_producers: bool,
    /// Records with this payload end the process that enqueues them.
    deadly: Vec<String>,
    renewals: u64,
    look_ups: u64,
    /// Another name than the usual one.
    cluster: Option<String>,
}

/// Kafka as a test wants it. Clones share the log.
#[derive(Clone, Debug, Default)]
pub struct ScriptedBroker {
    state: Arc<Mutex<State>>,
    changed: Arc<Notify>,
}

impl ScriptedBroker {
    /// A broker with these topics, of one partition each.
    #[must_use]
    pub fn with_topics(topics: &[&str]) -> Self {
        let broker = Self::default();
        for topic in topics {
            broker.create_topic(topic);
        }
        broker
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.changed.notify_waiters();
    }

    /// Makes a topic writable.
    pub fn create_topic(&self, topic: &str) {
        self.limit_topic(topic, 1_000_000);
    }

    /// Makes a topic writable for records of at most so many bytes.
    pub fn limit_topic(&self, topic: &str, max_message_bytes: usize) {
        let partitions = match self.state().topics.get(topic) {
            Some(TopicState::Writable(info)) => info.partitions,
            _ => 1,
        };
        let info = TopicInfo { partitions, max_message_bytes };
        self.change(|state| {
            state.topics.insert(topic.into(), TopicState::Writable(info));
        });
    }

    /// Makes a topic unknown again; records for it fail.
    pub fn delete_topic(&self, topic: &str) {
        self.change(|state| {
            state.topics.remove(topic);
        });
    }

    /// Acknowledges nothing until told otherwise. Records queue up in the client.
    pub fn silent(&self, silent: bool) {
        self.change(|state| state.silent = silent);
    }

    /// Acknowledges nothing of this topic until told otherwise.
    pub fn silent_topic(&self, topic: &str, silent: bool) {
        self.change(|state| {
            state.silent_topics.retain(|its| its != topic);
            if silent {
                state.silent_topics.push(topic.into());
            }
        });
    }

    /// Gives a topic so many partitions, as far as look-ups tell.
    pub fn partition_topic(&self, topic: &str, partitions: i32) {
        self.change(|state| {
            if let Some(TopicState::Writable(info)) = state.topics.get_mut(topic) {
                info.partitions = partitions;
            }
        });
    }

    /// Payloads in a topic's log, in order, every copy.
    #[must_use]
    pub fn payloads(&self, topic: &str) -> Vec<String> {
        let state = self.state();
        let written = state.log.iter().filter(|record| record.topic == topic);
        written.filter_map(|record| record.payload.clone()).collect()
    }

    /// Look-ups find no broker.
    pub fn unreachable(&self, unreachable: bool) {
        self.change(|state| state.unreachable = unreachable);
    }

    /// Look-ups asked from now on get no answer at all, or get one again.
    pub fn mute_look_ups(&self, mute: bool) {
        self.change(|state| state.mute_look_ups = mute);
    }

    /// A record with this payload makes its whole batch fail as too large.
    pub fn poison(&self, payload: &str) {
        self.change(|state| state.poison.push(payload.into()));
    }

    /// A record with this payload fails so often, and only it.
    pub fn refuse(&self, payload: &str, fault: Fault, times: u32) {
        self.change(|state| {
            state.refuse.insert(payload.into(), (fault, times));
        });
    }

    /// The cluster has this name from now on.
    pub fn cluster(&self, name: &str) {
        self.change(|state| state.cluster = Some(name.into()));
    }

    /// A record with this payload ends the process that hands it over: here, the task of the relay panics.
    pub fn deadly(&self, payload: &str) {
        self.change(|state| state.deadly.push(payload.into()));
    }

    /// No record ends a process any longer.
    pub fn harmless(&self) {
        self.change(|state| state.deadly.clear());
    }

    /// The next record breaks its producer beyond repair.
    pub fn break_next_producer(&self) {
        self.change(|state| state.break_producers = true);
    }

    /// Everything that was written, in order.
    #[must_use]
    pub fn log(&self) -> Vec<Delivered> {
        self.state().log.clone()
    }

    /// Payloads of a key in the log, in order, repeated copies left out.
    #[must_use]
    pub fn first_copies(&self, key: &str) -> Vec<String> {
        let mut seen: Vec<String> = Vec::new();
        for record in self.state().log.iter().filter(|record| record.key.as_deref() == Some(key)) {
            if let Some(payload) = &record.payload
                && !seen.contains(payload)
            {
                seen.push(payload.clone());
            }
        }
        seen
    }

    /// How often a client was made anew.
    #[must_use]
    pub fn renewals(&self) -> u64 {
        self.state().renewals
    }

    /// How many topics were looked up.
    #[must_use]
    pub fn look_ups(&self) -> u64 {
        self.state().look_ups
    }

    /// A client of this broker.
    #[must_use]
    pub fn publisher(&self) -> ScriptedPublisher {
        ScriptedPublisher { broker: self.clone(), queue: VecDeque::new(), fatal: false, queue_max: 100_000 }
    }
}

/// A client of [`ScriptedBroker`].
#[derive(Debug)]
pub struct ScriptedPublisher {
    broker: ScriptedBroker,
    queue: VecDeque<(Token, Record)>,
    fatal: bool,
    queue_max: usize,
}

impl ScriptedPublisher {
    /// The same client with a short queue.
    #[must_use]
    pub fn with_queue_max(mut self, queue_max: usize) -> Self {
        self.queue_max = queue_max;
        self
    }

    /// One batch, if the broker answers now.
    fn batch(&mut self) -> Vec<Report> {
        let mut state = self.broker.state();
        if state.silent || self.queue.is_empty() {
            return Vec::new();
        }
        if std::mem::take(&mut state.break_producers) {
            self.fatal = true;
        }
        let alone = self.queue.len() == 1;
        let goes = |record: &Record| !state.silent_topics.contains(&record.topic);
        let (mut batch, mut stays) = (Vec::new(), VecDeque::new());
        for (token, record) in self.queue.drain(..) {
            if batch.len() < BATCH && goes(&record) {
                batch.push((token, record));
            } else {
                stays.push_back((token, record));
            }
        }
        self.queue = stays;
        let poisoned = batch.iter().any(|(_, record)| state.poison.contains(&payload(record)));
        let answer = |(token, record)| {
            let fault = if self.fatal {
                Some(Fault::FatalProducer)
            } else if poisoned {
                Some(Fault::TooLarge)
            } else {
                state.refused(&record)
            };
            let result = match fault {
                Some(fault) => Err(DeliveryError { fault, code: format!("{fault:?}") }),
                None => Ok(state.write(&record, alone)),
            };
            Report { token, result }
        };
        batch.into_iter().map(answer).collect()
    }
}

impl State {
    fn refused(&mut self, record: &Record) -> Option<Fault> {
        if !self.topics.contains_key(&record.topic) {
            return Some(Fault::TopicUnknown);
        }
        let (fault, times) = self.refuse.get_mut(&payload(record))?;
        *times = times.checked_sub(1)?;
        Some(*fault)
    }

    fn write(&mut self, record: &Record, alone: bool) -> Receipt {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let id = record.headers.iter().find(|(name, _)| *name == "id");
        let offset = self.log.iter().filter(|written| written.topic == record.topic).count();
        self.log.push(Delivered {
            id: id.map(|(_, value)| text(value)).unwrap_or_default(),
            topic: record.topic.clone(),
            key: record.key.as_deref().map(text),
            payload: record.payload.as_deref().map(text),
            alone,
            replay: record
                .headers
                .iter()
                .find(|(name, _)| *name == REPLAY_HEADER)
                .map(|(_, value)| text(value)),
        });
        Receipt { partition: 0, offset: i64::try_from(offset).unwrap_or(i64::MAX) }
    }
}

fn payload(record: &Record) -> String {
    record.payload.as_deref().map(|bytes| String::from_utf8_lossy(bytes).into_owned()).unwrap_or_default()
}

impl Publisher for ScriptedPublisher {
    fn enqueue(&mut self, token: Token, record: Record) -> Result<(), EnqueueError> {
        if self.fatal {
            let error = DeliveryError { fault: Fault::FatalProducer, code: "Fatal".into() };
            return Err(EnqueueError::Fault(error));
        }
        let deadly = self.broker.state().deadly.contains(&payload(&record));
        assert!(!deadly, "this record ends the process");
        if self.queue.len() >= self.queue_max {
            return Err(EnqueueError::Full(Box::new(record)));
        }
        self.queue.push_back((token, record));
        Ok(())
    }

    async fn reports(&mut self, into: &mut Vec<Report>) {
        let changed = Arc::clone(&self.broker.changed);
        loop {
            let notified = changed.notified();
            let batch = self.batch();
            if !batch.is_empty() {
                into.extend(batch);
                return;
            }
            notified.await;
        }
    }

    fn look_up(
        &self,
        topics: Vec<String>,
    ) -> impl Future<Output = Vec<(String, TopicState)>> + Send + 'static {
        let mut state = self.broker.state();
        state.look_ups += topics.len() as u64;
        let answer = |topic: String| {
            let known = if state.unreachable {
                TopicState::Unreachable(DeliveryError {
                    fault: Fault::Unreachable,
                    code: "Unreachable".into(),
                })
            } else {
                state.topics.get(&topic).cloned().unwrap_or(TopicState::Held(HoldReason::TopicUnknown))
            };
            (topic, known)
        };
        let answers: Vec<_> = topics.into_iter().map(answer).collect();
        let muted = state.mute_look_ups;
        async move { if muted { std::future::pending().await } else { answers } }
    }

    fn cluster(&self) -> impl Future<Output = Result<Option<String>, DeliveryError>> + Send + 'static {
        let state = self.broker.state();
        std::future::ready(if state.unreachable {
            Err(DeliveryError { fault: Fault::Unreachable, code: "Unreachable".into() })
        } else {
            Ok(Some(state.cluster.clone().unwrap_or_else(|| "scripted".into())))
        })
    }

    fn must_renew(&self) -> bool {
        self.fatal
    }

    async fn renew(&mut self) {
        self.queue.clear();
        self.fatal = false;
        self.broker.state().renewals += 1;
    }

    async fn close(&mut self) {
        self.queue.clear();
    }

    fn stats(&self) -> PublisherStats {
        PublisherStats { queue_messages: self.queue.len() as u64, queue_bytes: 0 }
    }
}
