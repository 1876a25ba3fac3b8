//! What tests do with topics.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write as _;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Header, Headers, Message, OwnedHeaders};
use rdkafka::metadata::MetadataTopic;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio::task::spawn_blocking;
use uuid::Uuid;

use super::broker;
use crate::wait;

const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// A record as a consumer sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Consumed {
    /// Partition.
    pub partition: i32,
    /// Offset.
    pub offset: i64,
    /// Key.
    pub key: Option<Bytes>,
    /// Payload; `None` is a tombstone.
    pub payload: Option<Bytes>,
    /// Headers in their order.
    pub headers: Vec<(String, Option<Bytes>)>,
    /// The record's timestamp, in milliseconds since 1970.
    pub timestamp: Option<i64>,
}

impl Consumed {
    /// The text of a header.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().find(|(of, _)| of == name)?;
        std::str::from_utf8(value.as_ref()?).ok()
    }

    /// The message id that the relay stamped.
    ///
    /// # Panics
    /// There is none.
    #[must_use]
    pub fn id(&self) -> Uuid {
        self.header("id").and_then(|id| id.parse().ok()).expect("every record has a header `id` with a UUID")
    }
}

/// A topic name that no other test uses.
#[must_use]
pub fn unique_topic(purpose: &str) -> String {
    format!("{purpose}-{}", Uuid::new_v4().simple())
}

/// Creates a topic and waits until the broker knows a leader for each of its partitions.
///
/// # Panics
/// The broker does not let us.
pub async fn create_topic(bootstrap: &str, name: &str, partitions: i32, config: &[(&str, &str)]) {
    try_create_topic(bootstrap, name, partitions, config).await.expect("create a topic");
}

async fn try_create_topic(
    bootstrap: &str,
    name: &str,
    partitions: i32,
    config: &[(&str, &str)],
) -> Result<()> {
    let admin = admin(bootstrap)?;
    let mut topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
    topic.config.extend_from_slice(config);
    for result in admin.create_topics([&topic], &admin_options()).await? {
        result.map_err(|(topic, code)| anyhow::anyhow!("create {topic}: {code}"))?;
    }
    let client = consumer(bootstrap)?;
    let wanted = name.to_owned();
    spawn_blocking(move || wait_for_leaders(&client, &wanted, usize::try_from(partitions)?)).await?
}

/// Gives a topic more partitions and waits until the broker knows a leader for each.
///
/// # Panics
/// The broker does not let us.
pub async fn add_partitions(bootstrap: &str, name: &str, partitions: usize) {
    let admin = admin(bootstrap).expect("an admin client");
    let more = NewPartitions::new(name, partitions);
    let added = admin.create_partitions([&more], &admin_options()).await.expect("add partitions");
    assert!(added.iter().all(Result::is_ok), "add partitions: {added:?}");
    let (bootstrap, name) = (bootstrap.to_owned(), name.to_owned());
    let led = spawn_blocking(move || wait_for_leaders(&consumer(&bootstrap)?, &name, partitions));
    led.await.expect("waiting does not panic").expect("the partitions have leaders");
}

/// Creates many topics of one partition, and waits until the broker knows a leader for each.
///
/// # Panics
/// The broker does not let us.
pub async fn create_topics(bootstrap: &str, names: &[String]) {
    const AT_ONCE: usize = 500;
    const LEADER_LIMIT: Duration = Duration::from_millis(20);
    let admin = admin(bootstrap).expect("an admin client");
    for some in names.chunks(AT_ONCE) {
        let topics: Vec<NewTopic<'_>> =
            some.iter().map(|name| NewTopic::new(name, 1, TopicReplication::Fixed(1))).collect();
        let created = admin.create_topics(&topics, &admin_options()).await.expect("create topics");
        assert!(created.iter().all(Result::is_ok), "create topics: {created:?}");
    }
    let limit = ANSWER_LIMIT + LEADER_LIMIT * u32::try_from(names.len()).unwrap_or(u32::MAX);
    wait::until(format!("{} topics have leaders", names.len()), limit, || async {
        let metadata = admin.inner().fetch_metadata(None, ANSWER_LIMIT)?;
        let led = |topic: &&MetadataTopic| topic.partitions().iter().all(|partition| partition.leader() >= 0);
        let known: BTreeSet<&str> = metadata.topics().iter().filter(led).map(MetadataTopic::name).collect();
        Ok(names.iter().all(|name| known.contains(name.as_str())).then_some(()))
    })
    .await
    .expect("the topics have leaders");
}

/// Deletes a topic and waits until the broker does not know it any more.
///
/// # Panics
/// The broker does not let us.
pub async fn delete_topic(bootstrap: &str, name: &str) {
    try_delete_topic(bootstrap, name).await.expect("delete a topic");
}

async fn try_delete_topic(bootstrap: &str, name: &str) -> Result<()> {
    let admin = admin(bootstrap)?;
    for result in admin.delete_topics(&[name], &admin_options()).await? {
        result.map_err(|(topic, code)| anyhow::anyhow!("delete {topic}: {code}"))?;
    }
    wait::until(format!("topic {name} is gone"), ANSWER_LIMIT, || async {
        let metadata = admin.inner().fetch_metadata(None, ANSWER_LIMIT)?;
        Ok(metadata.topics().iter().all(|topic| topic.name() != name).then_some(()))
    })
    .await
}

/// Deletes the records of a partition before an offset, as an administrator does.
///
/// # Panics
/// The broker does not let us.
pub async fn delete_records(bootstrap: &str, topic: &str, partition: i32, before: i64) {
    let mut offsets = TopicPartitionList::new();
    offsets.add_partition_offset(topic, partition, Offset::Offset(before)).expect("an offset");
    let admin = admin(bootstrap).expect("an admin client");
    let deleted = admin.delete_records(&offsets, &admin_options()).await.expect("delete records");
    assert!(deleted.elements().iter().all(|of| of.error().is_ok()), "delete records: {deleted:?}");
}

/// Publishes one record, as somebody else would.
///
/// # Panics
/// The broker does not take it.
pub async fn produce(bootstrap: &str, topic: &str, record: &Consumed) {
    let (bootstrap, topic, record) = (bootstrap.to_owned(), topic.to_owned(), record.clone());
    let producing = spawn_blocking(move || try_produce(&bootstrap, &topic, &record));
    producing.await.expect("producing does not panic").expect("produce a record");
}

fn try_produce(bootstrap: &str, topic: &str, record: &Consumed) -> Result<()> {
    let producer: BaseProducer =
        ClientConfig::new().set("bootstrap.servers", bootstrap).set("acks", "all").create()?;
    let headers = record.headers.iter().fold(OwnedHeaders::new(), |headers, (name, value)| {
        headers.insert(Header { key: name, value: value.as_deref() })
    });
    let produced = BaseRecord {
        topic,
        partition: Some(record.partition),
        payload: record.payload.as_deref(),
        key: record.key.as_deref(),
        timestamp: None,
        headers: Some(headers),
        delivery_opaque: (),
    };
    producer.send(produced).map_err(|(error, _)| error)?;
    producer.flush(ANSWER_LIMIT).context("flush")
}

/// Everything that is in a topic now, by partition and offset.
///
/// # Panics
/// The broker does not answer, or the topic does not exist.
pub async fn read_all(bootstrap: &str, topic: &str) -> Vec<Consumed> {
    let (bootstrap, topic) = (bootstrap.to_owned(), topic.to_owned());
    spawn_blocking(move || read_to_end(&bootstrap, &topic))
        .await
        .expect("reading does not panic")
        .expect("read a topic to its end")
}

/// How many records a topic holds, from its offsets alone.
///
/// # Panics
/// The broker does not answer, or the topic does not exist.
pub async fn count(bootstrap: &str, topic: &str) -> usize {
    let (bootstrap, topic) = (bootstrap.to_owned(), topic.to_owned());
    let ends = spawn_blocking(move || ends(&consumer(&bootstrap)?, &topic))
        .await
        .expect("counting does not panic")
        .expect("ask for a topic's offsets");
    ends.iter().map(|end| usize::try_from(end.high - end.low).unwrap_or(0)).sum()
}

/// Waits until a topic holds at least so many records, then reads them all.
///
/// # Panics
/// They do not come in time.
pub async fn read_at_least(bootstrap: &str, topic: &str, records: usize, limit: Duration) -> Vec<Consumed> {
    let what = format!("topic {topic} holds {records} records");
    wait::until(what, limit, || async { Ok((count(bootstrap, topic).await >= records).then_some(())) })
        .await
        .expect("records come");
    read_all(bootstrap, topic).await
}

/// Per partition, up to where a consumer group has acknowledged; 0 where it has not.
///
/// # Panics
/// The broker does not answer.
pub async fn acknowledged(bootstrap: &str, topic: &str, group: &str) -> BTreeMap<i32, i64> {
    let (bootstrap, topic, group) = (bootstrap.to_owned(), topic.to_owned(), group.to_owned());
    let looking = spawn_blocking(move || committed(&bootstrap, &topic, &group));
    looking.await.expect("the look does not panic").expect("read what a group has acknowledged")
}

fn committed(bootstrap: &str, topic: &str, group: &str) -> Result<BTreeMap<i32, i64>> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", group)
        .create()
        .context("create a consumer")?;
    let mut partitions = TopicPartitionList::new();
    for end in ends(&consumer, topic)? {
        partitions.add_partition(topic, end.partition);
    }
    let committed = consumer.committed_offsets(partitions, ANSWER_LIMIT)?;
    let offset = |offset| if let Offset::Offset(offset) = offset { offset } else { 0 };
    Ok(committed.elements().iter().map(|of| (of.partition(), offset(of.offset()))).collect())
}

/// Publishes pairs of key and payload with the Java client and its default partitioner.
///
/// Neither may hold a tab or a line break.
///
/// # Panics
/// Java is missing or the broker does not take them.
pub fn produce_with_java(bootstrap: &str, topic: &str, pairs: &[(String, String)]) {
    try_produce_with_java(bootstrap, topic, pairs).expect("produce with the Java client");
}

fn try_produce_with_java(bootstrap: &str, topic: &str, pairs: &[(String, String)]) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let input = directory.path().join("pairs");
    let mut file = fs::File::create(&input)?;
    for (key, payload) in pairs {
        writeln!(file, "{key}\t{payload}")?;
    }
    let mut tool = broker::Java::find()?.command("128m");
    tool.arg("org.apache.kafka.tools.ConsoleProducer")
        .args(["--bootstrap-server", bootstrap, "--topic", topic, "--sync"])
        .args(["--property", "parse.key=true", "--property", "key.separator=\t"])
        .stdin(Stdio::from(fs::File::open(&input)?));
    broker::run(tool)
}

fn admin(bootstrap: &str) -> Result<AdminClient<DefaultClientContext>> {
    ClientConfig::new().set("bootstrap.servers", bootstrap).create().context("create an admin client")
}

fn admin_options() -> AdminOptions {
    AdminOptions::new().operation_timeout(Some(ANSWER_LIMIT)).request_timeout(Some(ANSWER_LIMIT))
}

fn consumer(bootstrap: &str) -> Result<BaseConsumer> {
    ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", "outboxd-testkit")
        .set("enable.auto.commit", "false")
        .set("auto.offset.reset", "error")
        .set("isolation.level", "read_uncommitted")
        .set("fetch.wait.max.ms", "20")
        .set("fetch.message.max.bytes", "20000000")
        .create()
        .context("create a consumer")
}

/// A partition and the range of its offsets: from `low` to before `high`.
struct End {
    partition: i32,
    low: i64,
    high: i64,
}

fn ends(consumer: &BaseConsumer, topic: &str) -> Result<Vec<End>> {
    let metadata = consumer.fetch_metadata(Some(topic), ANSWER_LIMIT).context("fetch metadata")?;
    let found = metadata.topics().first().context("the broker describes no topic")?;
    if let Some(error) = found.error() {
        bail!("topic {topic}: {}", rdkafka::types::RDKafkaErrorCode::from(error));
    }
    found
        .partitions()
        .iter()
        .map(|partition| {
            let (low, high) = consumer.fetch_watermarks(topic, partition.id(), ANSWER_LIMIT)?;
            Ok(End { partition: partition.id(), low, high })
        })
        .collect()
}

fn wait_for_leaders(consumer: &BaseConsumer, topic: &str, partitions: usize) -> Result<()> {
    let end = Instant::now() + ANSWER_LIMIT;
    loop {
        if ends(consumer, topic).is_ok_and(|ends| ends.len() == partitions) {
            return Ok(());
        }
        if Instant::now() > end {
            bail!("waited {ANSWER_LIMIT:?} until topic {topic} has leaders");
        }
        // Serves the client's own events, and is the pause between two looks.
        drop(consumer.poll(Duration::from_millis(20)));
    }
}

fn read_to_end(bootstrap: &str, topic: &str) -> Result<Vec<Consumed>> {
    let consumer = consumer(bootstrap)?;
    let ends = ends(&consumer, topic)?;
    let mut records = Vec::new();
    for end in ends.iter().filter(|end| end.high > end.low) {
        let mut assignment = TopicPartitionList::new();
        assignment.add_partition_offset(topic, end.partition, Offset::Offset(end.low))?;
        consumer.assign(&assignment)?;
        let mut next = end.low;
        while next < end.high {
            let message = consumer.poll(ANSWER_LIMIT).with_context(|| {
                format!("partition {} ends at {next}, not at {}", end.partition, end.high)
            })??;
            next = message.offset() + 1;
            records.push(consumed(&message));
        }
    }
    Ok(records)
}

fn consumed(message: &impl Message) -> Consumed {
    let headers = message.headers().into_iter().flat_map(Headers::iter);
    Consumed {
        partition: message.partition(),
        offset: message.offset(),
        key: message.key().map(Bytes::copy_from_slice),
        payload: message.payload().map(Bytes::copy_from_slice),
        headers: headers.map(|of| (of.key.to_owned(), of.value.map(Bytes::copy_from_slice))).collect(),
        timestamp: message.timestamp().to_millis(),
    }
}
