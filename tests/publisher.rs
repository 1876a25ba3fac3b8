//! The Kafka adapter against real brokers: what it promises the loop, and what the promises rest on.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::process::Command;
use std::time::{Duration, Instant};

use bytes::Bytes;
use outboxd_core::{DeliveryError, Fault, HoldReason, Receipt, Record, TopicInfo};
use outboxd_engine::{EnqueueError, Publisher, Report, Severity, Token, TopicState};
use outboxd_kafka::{Compression, CreateError, KafkaConfig, KafkaPublisher, RecordReader};
use outboxd_testkit::kafka::broker::Java;
use outboxd_testkit::kafka::{Broker, Options, create_topic, delete_topic, read_all, unique_topic};
use outboxd_testkit::{kafka, shared, wait};
use tokio::time::timeout;

mod faults;

mod secured;

/// Far more than anything here takes; a test that waits so long has failed.
const LIMIT: Duration = Duration::from_secs(60);

/// A publisher with its client, as a leader has one.
async fn with_client(config: KafkaConfig) -> KafkaPublisher {
    let mut publisher = KafkaPublisher::new(config).expect("the configuration makes a publisher");
    publisher.renew().await;
    publisher
}

async fn publisher_to(bootstrap: &str) -> KafkaPublisher {
    with_client(KafkaConfig::new(bootstrap)).await
}

fn record(topic: &str, key: Option<&str>, payload: impl Into<Bytes>) -> Record {
    Record {
        topic: topic.to_owned(),
        partition: None,
        key: key.map(|key| Bytes::copy_from_slice(key.as_bytes())),
        payload: Some(payload.into()),
        headers: vec![("id", Bytes::from_static(b"1"))],
        own_headers: Vec::new(),
    }
}

async fn look_up(publisher: &KafkaPublisher, topic: &str) -> TopicState {
    let mut found = publisher.look_up(vec![topic.to_owned()]).await;
    assert_eq!(found.len(), 1);
    let (name, state) = found.remove(0);
    assert_eq!(name, topic);
    state
}

async fn writable(publisher: &KafkaPublisher, topic: &str) -> TopicInfo {
    let ended = Instant::now() + LIMIT;
    loop {
        match look_up(publisher, topic).await {
            TopicState::Writable(info) => return info,
            other => assert!(Instant::now() < ended, "{topic}: {other:?}, {:?}", publisher.last_error()),
        }
    }
}

/// Enqueues with tokens from `first` on, waiting for reports whenever the queue is full.
async fn enqueue_all(
    publisher: &mut KafkaPublisher,
    first: u64,
    records: impl IntoIterator<Item = Record>,
) -> Vec<Report> {
    let mut reports = Vec::new();
    for (token, record) in (first..).zip(records) {
        let mut waiting = Box::new(record);
        loop {
            match publisher.enqueue(Token(token), *waiting) {
                Ok(()) => break,
                Err(EnqueueError::Full(record)) => waiting = record,
                Err(other) => panic!("record {token} is refused: {other:?}"),
            }
            timeout(LIMIT, publisher.reports(&mut reports)).await.expect("a full queue reports");
        }
    }
    reports
}

/// Waits until there are so many reports. Then there is no more: nobody is told twice.
async fn all_reports(publisher: &mut KafkaPublisher, reports: &mut Vec<Report>, count: usize) {
    let ended = Instant::now() + LIMIT;
    while reports.len() < count {
        let left = ended.saturating_duration_since(Instant::now());
        let so_far = reports.len();
        assert!(
            timeout(left, publisher.reports(reports)).await.is_ok(),
            "{so_far} of {count} reports came; last error {:?}",
            publisher.last_error()
        );
    }
    // The counters follow a report within moments.
    wait::until_true("nothing is in flight", LIMIT, || publisher.stats().queue_messages == 0).await.unwrap();
    assert!(timeout(Duration::from_millis(50), publisher.reports(reports)).await.is_err());
    assert_eq!(reports.len(), count);
}

async fn deliver(publisher: &mut KafkaPublisher, records: Vec<Record>) -> Vec<Report> {
    let count = records.len();
    let mut reports = enqueue_all(publisher, 0, records).await;
    all_reports(publisher, &mut reports, count).await;
    reports
}

fn receipts(reports: &[Report]) -> BTreeMap<u64, Receipt> {
    let receipts: BTreeMap<u64, Receipt> = reports
        .iter()
        .map(|report| (report.token.0, *report.result.as_ref().expect("the record is acknowledged")))
        .collect();
    assert_eq!(receipts.len(), reports.len(), "a token was reported twice");
    receipts
}

fn fault(report: &Report) -> Option<Fault> {
    report.result.as_ref().err().map(|error| error.fault)
}

/// One of Kafka's own tools, with the Java client and its defaults.
fn kafka_tool(class: &str) -> Command {
    let Java::Jars(jars) = Java::find().unwrap() else {
        panic!("this test runs Kafka's tools: install Java 17 and Maven")
    };
    let mut classes = jars.into_os_string();
    classes.push("/*");
    let mut tool = Command::new("java");
    tool.args(["-Xmx128m", "-XX:TieredStopAtLevel=1", "-Dfile.encoding=UTF-8", "-cp"])
        .arg(classes)
        .arg(class);
    tool
}

fn run(tool: &mut Command) {
    let output = tool.output().expect("java runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// D3. The client keeps the order in which it is fed.
#[tokio::test]
async fn a_hundred_thousand_records_arrive_in_order_and_are_where_their_reports_say() {
    const RECORDS: u64 = 100_000;
    let (bootstrap, topic) = (shared::kafka(), unique_topic("order"));
    create_topic(&bootstrap, &topic, 6, &[]).await;
    // A queue that overflows again and again: pushing back must not reorder.
    let config = KafkaConfig { queue_messages: 5_000, ..KafkaConfig::new(&bootstrap) };
    let mut publisher = with_client(config).await;
    let records = (0..RECORDS)
        .map(|nth| record(&topic, Some(&format!("key-{}", nth % 97)), nth.to_string()))
        .collect::<Vec<_>>();
    let reports = deliver(&mut publisher, records).await;
    let receipts = receipts(&reports);

    let log = read_all(&bootstrap, &topic).await;
    assert_eq!(log.len(), usize::try_from(RECORDS).unwrap());
    let mut last_of_key: HashMap<Bytes, u64> = HashMap::new();
    for consumed in log {
        let nth: u64 = std::str::from_utf8(consumed.payload.as_ref().unwrap()).unwrap().parse().unwrap();
        assert_eq!(receipts[&nth], Receipt { partition: consumed.partition, offset: consumed.offset });
        let before = last_of_key.insert(consumed.key.unwrap(), nth);
        assert!(before.is_none_or(|before| before < nth), "{before:?} came before {nth}");
    }
}

#[tokio::test]
async fn one_oversize_record_fails_its_batch_until_the_client_knows_the_topic() {
    let (bootstrap, topic) = (shared::kafka(), unique_topic("oversize"));
    create_topic(&bootstrap, &topic, 1, &[("max.message.bytes", "20000")]).await;
    let records = || {
        let size = |nth| if nth == 150 { 50_000 } else { 100 };
        (0..300).map(|nth| record(&topic, Some("key"), vec![b'x'; size(nth)])).collect::<Vec<_>>()
    };
    // The broker weighs a batch as it comes, and these would weigh next to nothing.
    let config = KafkaConfig { compression: Compression::None, ..KafkaConfig::new(&bootstrap) };
    let mut publisher = with_client(config).await;
    let reports = deliver(&mut publisher, records()).await;
    let failed = reports.iter().filter(|report| fault(report) == Some(Fault::TooLarge)).count();
    let acknowledged = reports.iter().filter(|report| report.result.is_ok()).count();
    assert_eq!(failed + acknowledged, 300, "exactly one report each, and no other fault");
    assert!(
        failed > 1,
        "librdkafka fails whole batches; if it did not any more, trying alone would be needless"
    );

    assert!(!publisher.must_renew());
    assert_eq!(writable(&publisher, &topic).await, TopicInfo { partitions: 1, max_message_bytes: 20_000 });
    assert!(publisher.must_renew(), "its batches are larger than the topic takes");
    publisher.renew().await;
    assert!(!publisher.must_renew());
    let reports = deliver(&mut publisher, records()).await;
    let failed: Vec<_> = reports.iter().filter(|report| report.result.is_err()).collect();
    assert_eq!(failed.len(), 1);
    assert_eq!((failed[0].token, fault(failed[0])), (Token(150), Some(Fault::TooLarge)));
}

/// The topic takes no record that is older than the broker's clock, as if that clock were ahead of ours.
#[tokio::test]
async fn a_clock_that_differs_is_the_clusters_trouble_and_never_a_records_own_fault() {
    let (bootstrap, topic) = (shared::kafka(), unique_topic("clock"));
    create_topic(&bootstrap, &topic, 1, &[("message.timestamp.before.max.ms", "0")]).await;
    let mut publisher = publisher_to(&bootstrap).await;
    writable(&publisher, &topic).await;
    let reports = deliver(&mut publisher, vec![record(&topic, None, "1")]).await;
    let error = reports[0].result.as_ref().expect_err("the record is refused");
    assert_eq!(error.fault, Fault::BrokerNotReady, "{error}");
    assert!(error.code.contains("set the clocks right"), "{error}");
}

#[tokio::test]
async fn a_topic_that_takes_larger_records_gets_them_after_a_renewal() {
    let (bootstrap, topic) = (shared::kafka(), unique_topic("large"));
    create_topic(&bootstrap, &topic, 1, &[("max.message.bytes", "6000000")]).await;
    let mut publisher = publisher_to(&bootstrap).await;
    let large = || record(&topic, None, vec![0_u8; 5_500_000]);
    assert_eq!(writable(&publisher, &topic).await.max_message_bytes, 6_000_000);
    let early = publisher.enqueue(Token(0), large());
    assert!(
        matches!(&early, Err(EnqueueError::Fault(DeliveryError { fault: Fault::FatalProducer, .. }))),
        "{early:?}"
    );
    assert!(publisher.must_renew());
    publisher.renew().await;
    receipts(&deliver(&mut publisher, vec![large()]).await);
    assert_eq!(read_all(&bootstrap, &topic).await[0].payload.as_ref().unwrap().len(), 5_500_000);
}

#[tokio::test]
async fn an_unknown_topic_is_held_and_written_to_within_two_seconds_of_its_creation() {
    let (bootstrap, topic) = (shared::kafka(), unique_topic("late"));
    let mut publisher = publisher_to(&bootstrap).await;
    for _ in 0..3 {
        assert_eq!(look_up(&publisher, &topic).await, TopicState::Held(HoldReason::TopicUnknown));
    }
    // The worst case: the producer itself has learned that the topic is missing. It says so at once then, and not by
    // refusing: that would stop the other topics too.
    for _ in 0..2 {
        let reports = deliver(&mut publisher, vec![record(&topic, None, "early")]).await;
        assert_eq!(fault(&reports[0]), Some(Fault::TopicUnknown));
    }

    create_topic(&bootstrap, &topic, 3, &[]).await;
    let created = Instant::now();
    assert_eq!(writable(&publisher, &topic).await, TopicInfo { partitions: 3, max_message_bytes: 1_048_588 });
    let reports = deliver(&mut publisher, vec![record(&topic, None, "now")]).await;
    let took = created.elapsed();
    receipts(&reports);
    assert!(took < Duration::from_secs(2), "{took:?}");
}

#[tokio::test]
async fn a_topic_that_is_deleted_and_made_again_is_noticed_both_times() {
    let (bootstrap, topic) = (shared::kafka(), unique_topic("again"));
    create_topic(&bootstrap, &topic, 2, &[]).await;
    let mut publisher = publisher_to(&bootstrap).await;
    writable(&publisher, &topic).await;
    receipts(&deliver(&mut publisher, vec![record(&topic, None, "1")]).await);
    delete_topic(&bootstrap, &topic).await;
    assert_eq!(look_up(&publisher, &topic).await, TopicState::Held(HoldReason::TopicUnknown));
    create_topic(&bootstrap, &topic, 4, &[]).await;
    assert_eq!(writable(&publisher, &topic).await.partitions, 4);
    let mut fourth = record(&topic, None, "2");
    fourth.partition = Some(3);
    let reports = wait::until("the new topic takes a record", LIMIT, || {
        // The client may have to find out that its connection to the old topic's partitions is of no use.
        let taken = publisher.enqueue(Token(0), fourth.clone());
        async move { Ok(taken.ok()) }
    });
    reports.await.unwrap();
    let mut reports = Vec::new();
    all_reports(&mut publisher, &mut reports, 1).await;
    assert_eq!(receipts(&reports)[&0], Receipt { partition: 3, offset: 0 });
}

#[tokio::test]
async fn a_look_up_creates_no_topic_even_where_the_broker_would() {
    let options = Options::default().property("auto.create.topics.enable", "true");
    let broker = Broker::start(options).await.unwrap();
    let publisher = publisher_to(&broker.bootstrap()).await;
    let topic = unique_topic("never");
    for _ in 0..3 {
        assert_eq!(look_up(&publisher, &topic).await, TopicState::Held(HoldReason::TopicUnknown));
    }
    let findings =
        outboxd_kafka::inspect(&KafkaConfig::new(broker.bootstrap()), std::slice::from_ref(&topic), None)
            .await;
    assert!(findings.iter().any(|finding| finding.severity == Severity::Error), "{findings:?}");
    assert_eq!(look_up(&publisher, &topic).await, TopicState::Held(HoldReason::TopicUnknown));
}

#[tokio::test]
async fn illegal_topic_names_are_held_without_asking_a_broker() {
    let publisher = publisher_to("127.0.0.1:1").await;
    for name in ["", "a b", "__consumer_offsets", "..", &"x".repeat(600)] {
        assert_eq!(look_up(&publisher, name).await, TopicState::Held(HoldReason::IllegalTopic));
    }
}

#[tokio::test]
async fn many_topics_are_answered_in_one_look_up_each_for_itself() {
    let bootstrap = shared::kafka();
    let publisher = publisher_to(&bootstrap).await;
    let (small, missing, usual) = (unique_topic("small"), unique_topic("missing"), unique_topic("usual"));
    create_topic(&bootstrap, &small, 2, &[("max.message.bytes", "10000")]).await;
    create_topic(&bootstrap, &usual, 5, &[]).await;
    let asked = vec![small.clone(), missing.clone(), usual.clone()];
    let info =
        |partitions, max_message_bytes| TopicState::Writable(TopicInfo { partitions, max_message_bytes });
    assert_eq!(
        publisher.look_up(asked).await,
        [
            (small, info(2, 10_000)),
            (missing, TopicState::Held(HoldReason::TopicUnknown)),
            (usual, info(5, 1_048_588)),
        ]
    );
}

#[tokio::test]
async fn every_kind_of_record_arrives_as_it_was_handed_over() {
    let (bootstrap, topic) = (shared::kafka(), unique_topic("kinds"));
    create_topic(&bootstrap, &topic, 4, &[]).await;
    let plain = || record(&topic, Some("k"), "");
    let bytes: Vec<u8> = (0..=255).chain([0, 0xff, 0xfe, 0xc0, 0x80]).collect();
    let megabyte: Vec<u8> = (0..900_000_u32).map(|nth| nth.to_le_bytes()[0] ^ nth.to_le_bytes()[1]).collect();
    let records = vec![
        Record { partition: Some(2), ..plain() },
        Record { key: None, partition: Some(0), payload: Some("no key".into()), ..plain() },
        Record { payload: None, ..plain() },
        Record { payload: Some(Bytes::new()), ..plain() },
        Record { payload: Some(megabyte.into()), ..plain() },
        Record { payload: Some(bytes.clone().into()), key: Some(bytes.into()), ..plain() },
        Record { key: Some(Bytes::new()), ..plain() },
        Record {
            headers: vec![("id", "\u{e9}".into()), ("correlation-id", Bytes::new())],
            own_headers: vec![
                ("x".into(), "1".into()),
                ("x".into(), "2".into()),
                ("ü".into(), String::new()),
            ],
            ..plain()
        },
        Record { headers: Vec::new(), ..plain() },
    ];
    let mut publisher = publisher_to(&bootstrap).await;
    let published_from = milliseconds_now();
    let receipts = receipts(&deliver(&mut publisher, records.clone()).await);
    let log: HashMap<(i32, i64), kafka::Consumed> = read_all(&bootstrap, &topic)
        .await
        .into_iter()
        .map(|consumed| ((consumed.partition, consumed.offset), consumed))
        .collect();
    assert_eq!(log.len(), records.len());
    for (nth, record) in (0_u64..).zip(&records) {
        let consumed = &log[&(receipts[&nth].partition, receipts[&nth].offset)];
        assert_eq!(consumed.key, record.key, "key of {nth}");
        assert!(consumed.payload == record.payload, "payload of {nth}");
        assert!(record.partition.is_none_or(|partition| consumed.partition == partition));
        let ours = record.headers.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
        let own = record.own_headers.iter().map(|(name, value)| (name.clone(), value.clone().into()));
        let expected: Vec<_> = ours.chain(own).map(|(name, value): (_, Bytes)| (name, Some(value))).collect();
        assert_eq!(consumed.headers, expected, "headers of {nth}");
        let at = consumed.timestamp.unwrap();
        assert!((published_from..=milliseconds_now()).contains(&at), "the time is that of publishing: {at}");
    }
}

fn milliseconds_now() -> i64 {
    i64::try_from(time::OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000_000).unwrap()
}

#[tokio::test]
async fn an_explicit_partition_that_does_not_exist_is_the_records_own_fault() {
    let (bootstrap, topic) = (shared::kafka(), unique_topic("partition"));
    create_topic(&bootstrap, &topic, 2, &[]).await;
    let mut publisher = publisher_to(&bootstrap).await;
    writable(&publisher, &topic).await;
    let seventh = Record { partition: Some(7), ..record(&topic, None, "x") };
    match publisher.enqueue(Token(0), seventh) {
        Err(EnqueueError::Refused(_)) => {}
        Ok(()) => {
            let mut reports = Vec::new();
            all_reports(&mut publisher, &mut reports, 1).await;
            assert_eq!(fault(&reports[0]), Some(Fault::InvalidRecord));
        }
        Err(other) => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_thousand_keys_land_where_the_java_client_puts_them() {
    const PARTITIONS: i32 = 12;
    let bootstrap = shared::kafka();
    let (by_java, by_us) = (unique_topic("java"), unique_topic("rust"));
    create_topic(&bootstrap, &by_java, PARTITIONS, &[]).await;
    create_topic(&bootstrap, &by_us, PARTITIONS, &[]).await;
    let keys: Vec<String> = (0..1_000_u128)
        .map(|nth| match nth % 4 {
            0 => nth.to_string(),
            1 => format!("order-{nth:08}"),
            2 => {
                uuid::Uuid::from_u128(nth.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)).to_string()
            }
            _ => format!("schlüssel-{}", "ключ".repeat(usize::try_from(nth).unwrap() % 9)) + &nth.to_string(),
        })
        .collect();
    let input = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(input.path(), keys.iter().map(|key| format!("{key}\tx\n")).collect::<String>()).unwrap();
    run(kafka_tool("org.apache.kafka.tools.ConsoleProducer")
        .args(["--bootstrap-server", &bootstrap, "--topic", &by_java])
        .args(["--property", "parse.key=true", "--property", "key.separator=\t"])
        .stdin(input.reopen().unwrap()));
    let records = keys.iter().map(|key| record(&by_us, Some(key), "x")).collect();
    receipts(&deliver(&mut publisher_to(&bootstrap).await, records).await);

    let placed = |log: Vec<kafka::Consumed>| -> BTreeMap<Bytes, i32> {
        log.into_iter().map(|consumed| (consumed.key.unwrap(), consumed.partition)).collect()
    };
    let (java, ours) =
        (placed(read_all(&bootstrap, &by_java).await), placed(read_all(&bootstrap, &by_us).await));
    assert_eq!(java.len(), keys.len());
    assert_eq!(ours, java);
    let used: BTreeSet<i32> = ours.values().copied().collect();
    assert_eq!(used.len(), usize::try_from(PARTITIONS).unwrap());
}

#[tokio::test]
async fn a_reader_sees_everything_from_the_beginning_in_the_order_of_each_partition() {
    let (bootstrap, topic) = (shared::kafka(), unique_topic("read"));
    create_topic(&bootstrap, &topic, 3, &[]).await;
    let mut publisher = publisher_to(&bootstrap).await;
    let records = (0..100).map(|nth| record(&topic, Some(&format!("k{}", nth % 5)), nth.to_string()));
    let receipts = receipts(&deliver(&mut publisher, records.collect()).await);
    let config = KafkaConfig::new(&bootstrap);
    let reader = RecordReader::from_beginning(&config, &[&topic]).await.unwrap();
    let mut next_of_partition: HashMap<i32, i64> = HashMap::new();
    for _ in 0..100 {
        let read = timeout(LIMIT, reader.next()).await.expect("a record comes").unwrap();
        let next = next_of_partition.entry(read.partition).or_default();
        assert_eq!(read.offset, *next);
        *next += 1;
        let nth: u64 = std::str::from_utf8(read.payload.as_ref().unwrap()).unwrap().parse().unwrap();
        assert_eq!(receipts[&nth], Receipt { partition: read.partition, offset: read.offset });
        assert_eq!(read.key.as_deref(), Some(format!("k{}", nth % 5).as_bytes()));
        assert_eq!(read.header("id"), Some("1"));
    }
    assert!(RecordReader::from_beginning(&config, &["no-such-topic"]).await.is_err());
}

#[tokio::test]
async fn a_configuration_that_would_void_a_promise_makes_no_publisher() {
    let mut config = KafkaConfig::new(shared::kafka());
    for (key, value) in [
        ("acks", "1"),
        ("enable.idempotence", "false"),
        ("partitioner", "consistent"),
        ("message.timeout.ms", "1000"),
        ("sasl.kerberos.kinit.cmd", "touch /tmp/canary"),
        ("plugin.library.paths", "canary.so"),
        ("no.such.property", "canary"),
    ] {
        config.properties.insert(key.to_owned(), value.to_owned());
    }
    let Err(CreateError::Configuration(problems)) = KafkaPublisher::new(config.clone()) else {
        panic!("a publisher was made")
    };
    assert_eq!(problems.len(), 7, "{problems:?}");
    assert!(!format!("{problems:?} {config:?}").contains("canary"));
}

#[tokio::test]
async fn a_preflight_tells_brokers_topics_and_what_is_missing() {
    let bootstrap = shared::kafka();
    let (usual, small, missing) = (unique_topic("usual"), unique_topic("small"), unique_topic("missing"));
    create_topic(&bootstrap, &usual, 3, &[]).await;
    create_topic(&bootstrap, &small, 1, &[("max.message.bytes", "5000"), ("cleanup.policy", "compact")])
        .await;
    let topics = [usual.clone(), small.clone(), missing.clone(), "not legal".to_owned()];
    let findings = outboxd_kafka::inspect(&KafkaConfig::new(&bootstrap), &topics, Some(1_000_000)).await;
    let of = |check: &str| -> Vec<Severity> {
        findings.iter().filter(|finding| finding.check == check).map(|finding| finding.severity).collect()
    };
    assert_eq!(of("kafka settings"), [Severity::Ok]);
    assert_eq!(of("brokers"), [Severity::Ok]);
    assert_eq!(of(&format!("topic {usual}")), [Severity::Ok]);
    assert_eq!(of(&format!("topic {small}")), [Severity::Ok, Severity::Warning, Severity::Warning]);
    assert_eq!(of(&format!("topic {missing}")), [Severity::Error]);
    assert_eq!(of("topic not legal"), [Severity::Error]);
    assert!(findings.iter().all(|finding| (finding.severity == Severity::Ok) == finding.remedy.is_empty()));

    for (nobody, why) in [("127.0.0.1:1", "refused"), ("no-such-host.invalid:9092", "resolve")] {
        let config = KafkaConfig { look_up_within: Duration::from_millis(500), ..KafkaConfig::new(nobody) };
        let findings = outboxd_kafka::inspect(&config, std::slice::from_ref(&usual), None).await;
        let brokers = findings.iter().find(|finding| finding.check == "brokers").unwrap();
        assert_eq!(brokers.severity, Severity::Error, "{brokers:?}");
        for said in [nobody, why] {
            assert!(brokers.found.contains(said), "{said} is not in {brokers:?}");
        }
    }
}

#[tokio::test]
async fn a_preflight_compares_what_topics_take_with_what_the_outbox_takes() {
    let bootstrap = shared::kafka();
    let topic = unique_topic("limits");
    create_topic(&bootstrap, &topic, 1, &[("max.message.bytes", "1048588")]).await;
    let warned = async |config: KafkaConfig, intent_max_bytes| {
        let findings = outboxd_kafka::inspect(&config, std::slice::from_ref(&topic), intent_max_bytes).await;
        findings.iter().any(|finding| {
            finding.severity == Severity::Warning && finding.found.contains("larger ones would be parked")
        })
    };
    let config = KafkaConfig::new(&bootstrap);
    assert!(!warned(config.clone(), Some(1_000_000)).await && !warned(config.clone(), None).await);
    assert!(warned(config.clone(), Some(50_000_000)).await);
    assert!(
        warned(KafkaConfig { queue_bytes: 900_000, message_max_bytes: 800_000, ..config }, Some(1_000_000))
            .await
    );
}
