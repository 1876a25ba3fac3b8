//! Brokers that stop, freeze, refuse and lose count, and clients that are thrown away.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use bytes::Bytes;
use outboxd_core::{DeliveryError, Fault, HoldReason, Record};
use outboxd_engine::{EnqueueError, Publisher as _, Token, TopicState};
use outboxd_kafka::{KafkaConfig, KafkaPublisher, MockBroker, MockRefusal};
use outboxd_testkit::kafka::{Broker, Options, create_topic, read_all, unique_topic};
use outboxd_testkit::wait;
use tokio::time::timeout;

use super::{
    LIMIT, all_reports, deliver, enqueue_all, fault, look_up, publisher_to, receipts, record, with_client,
    writable,
};

const TOPIC: &str = "orders";

async fn mock() -> (MockBroker, KafkaPublisher) {
    let broker = MockBroker::start().unwrap();
    broker.create_topic(TOPIC, 1).unwrap();
    let publisher = publisher_to(broker.bootstrap_servers()).await;
    (broker, publisher)
}

fn numbered(topic: &str, count: u64) -> impl Iterator<Item = Record> {
    (0..count).map(move |nth| record(topic, Some(&format!("key-{}", nth % 7)), nth.to_string()))
}

/// Everything in the log exactly once, and the records of a key in their order.
async fn assert_complete_and_in_order(bootstrap: &str, topic: &str, count: u64) {
    let mut seen = BTreeSet::new();
    let mut last_of_key: HashMap<Bytes, u64> = HashMap::new();
    for consumed in read_all(bootstrap, topic).await {
        let nth: u64 = std::str::from_utf8(consumed.payload.as_ref().unwrap()).unwrap().parse().unwrap();
        assert!(seen.insert(nth), "{nth} is there twice");
        let before = last_of_key.insert(consumed.key.unwrap(), nth);
        assert!(before.is_none_or(|before| before < nth), "{before:?} came before {nth}");
    }
    assert!(seen.into_iter().eq(0..count));
}

#[tokio::test]
async fn a_broker_that_is_killed_and_started_again_costs_no_error_and_no_order() {
    const RECORDS: u64 = 20_000;
    let mut broker = Broker::start(Options::default()).await.unwrap();
    let (bootstrap, topic) = (broker.bootstrap(), unique_topic("restart"));
    create_topic(&bootstrap, &topic, 3, &[]).await;
    let config = KafkaConfig { queue_messages: 2_000, ..KafkaConfig::new(&bootstrap) };
    let mut publisher = with_client(config).await;
    let mut records = numbered(&topic, RECORDS);
    let mut reports = enqueue_all(&mut publisher, 0, records.by_ref().take(5_000)).await;
    broker.kill_9().await.unwrap();
    let trouble = wait::until_true("the client notices", LIMIT, || publisher.last_error().is_some());
    trouble.await.unwrap();
    assert!(publisher.stats().queue_messages > 0, "nothing can be acknowledged now");
    broker.start_again().await.unwrap();
    reports.extend(enqueue_all(&mut publisher, 5_000, records).await);
    all_reports(&mut publisher, &mut reports, usize::try_from(RECORDS).unwrap()).await;
    receipts(&reports);
    assert!(publisher.last_error().is_none(), "an acknowledgement ends the trouble");
    assert!(!publisher.must_renew());
    assert_eq!(publisher.stats().queue_messages, 0);
    assert_eq!(publisher.stats().queue_bytes, 0);
    assert_complete_and_in_order(&bootstrap, &topic, RECORDS).await;
}

#[tokio::test]
async fn a_broker_that_freezes_costs_no_error_and_no_order() {
    const RECORDS: u64 = 20_000;
    let broker = Broker::start(Options::default()).await.unwrap();
    let (bootstrap, topic) = (broker.bootstrap(), unique_topic("freeze"));
    create_topic(&bootstrap, &topic, 3, &[]).await;
    let mut config = KafkaConfig::new(&bootstrap);
    // Frozen for longer than a request waits: requests are given up and sent again.
    config.properties.insert("socket.timeout.ms".into(), "1000".into());
    config.properties.insert("request.timeout.ms".into(), "800".into());
    let mut publisher = with_client(config).await;
    let mut records = numbered(&topic, RECORDS);
    let mut reports = enqueue_all(&mut publisher, 0, records.by_ref().take(5_000)).await;
    broker.pause().unwrap();
    reports.extend(enqueue_all(&mut publisher, 5_000, records.by_ref().take(5_000)).await);
    let trouble = wait::until_true("requests time out", LIMIT, || publisher.last_error().is_some());
    trouble.await.unwrap();
    assert!(publisher.stats().queue_messages >= 5_000);
    broker.resume().unwrap();
    reports.extend(enqueue_all(&mut publisher, 10_000, records).await);
    all_reports(&mut publisher, &mut reports, usize::try_from(RECORDS).unwrap()).await;
    receipts(&reports);
    assert_complete_and_in_order(&bootstrap, &topic, RECORDS).await;
}

#[tokio::test]
async fn a_full_queue_gives_the_record_back_and_keeps_the_order() {
    let (broker, _) = mock().await;
    broker.go_down().unwrap();
    let config = KafkaConfig { queue_messages: 10, ..KafkaConfig::new(broker.bootstrap_servers()) };
    let mut publisher = with_client(config).await;
    for (nth, record) in (0..).zip(numbered(TOPIC, 10)) {
        publisher.enqueue(Token(nth), record).expect("there is room");
    }
    let eleventh = record(TOPIC, Some("key"), "11");
    match publisher.enqueue(Token(10), eleventh.clone()) {
        Err(EnqueueError::Full(back)) => assert!(*back == eleventh, "another record came back"),
        other => panic!("{other:?}"),
    }
    assert_eq!(publisher.stats().queue_messages, 10);
    broker.come_up().unwrap();
    let mut reports = Vec::new();
    all_reports(&mut publisher, &mut reports, 10).await;
    let offsets: Vec<i64> = receipts(&reports).values().map(|receipt| receipt.offset).collect();
    assert_eq!(offsets, (0..10).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_queue_full_of_bytes_takes_one_record_of_any_size_that_it_allows() {
    let (broker, _) = mock().await;
    broker.go_down().unwrap();
    let config = KafkaConfig { queue_bytes: 2_000_000, ..KafkaConfig::new(broker.bootstrap_servers()) };
    let mut publisher = with_client(config).await;
    let large = || record(TOPIC, None, vec![0_u8; 1_000_000]);
    publisher.enqueue(Token(0), large()).expect("there is room");
    let second = publisher.enqueue(Token(1), large());
    assert!(matches!(second, Err(EnqueueError::Full(_))), "{second:?}");
    assert_eq!(publisher.stats().queue_bytes, 1_000_000);
}

#[tokio::test]
async fn a_renewal_throws_away_what_is_in_flight_and_its_reports_never_come() {
    let (broker, mut publisher) = mock().await;
    writable(&publisher, TOPIC).await;
    broker.answer_after(Duration::from_secs(2)).unwrap();
    enqueue_all(&mut publisher, 0, numbered(TOPIC, 100)).await;
    assert_eq!(publisher.stats().queue_messages, 100);
    publisher.renew().await;
    assert_eq!(publisher.stats().queue_messages, 0);
    broker.answer_after(Duration::ZERO).unwrap();
    let mut reports = enqueue_all(&mut publisher, 1_000, numbered(TOPIC, 100)).await;
    all_reports(&mut publisher, &mut reports, 100).await;
    assert!(receipts(&reports).into_keys().eq(1_000..1_100));
}

#[tokio::test]
async fn a_fatal_client_says_so_and_works_again_after_a_renewal() {
    let (broker, mut publisher) = mock().await;
    receipts(&deliver(&mut publisher, numbered(TOPIC, 10).collect()).await);
    broker.refuse_produce(&[MockRefusal::OutOfOrderSequence]).unwrap();
    let reports = deliver(&mut publisher, numbered(TOPIC, 10).collect()).await;
    assert!(
        reports.iter().all(|report| matches!(fault(report), Some(Fault::FatalProducer | Fault::Purged))),
        "{reports:?}"
    );
    assert!(publisher.must_renew());
    let refused = publisher.enqueue(Token(0), record(TOPIC, None, "x"));
    assert!(
        matches!(&refused, Err(EnqueueError::Fault(DeliveryError { fault: Fault::FatalProducer, .. }))),
        "{refused:?}"
    );
    publisher.renew().await;
    assert!(!publisher.must_renew());
    receipts(&deliver(&mut publisher, numbered(TOPIC, 10).collect()).await);
}

#[tokio::test]
async fn a_refused_batch_is_reported_and_later_records_go_on() {
    for (refusal, expected) in [
        (MockRefusal::InvalidRecord, Fault::InvalidRecord),
        (MockRefusal::TooLarge, Fault::TooLarge),
        (MockRefusal::TopicUnauthorized, Fault::TopicUnauthorized),
    ] {
        let (broker, mut publisher) = mock().await;
        writable(&publisher, TOPIC).await;
        broker.refuse_produce(&[refusal]).unwrap();
        let reports = deliver(&mut publisher, numbered(TOPIC, 1).collect()).await;
        assert_eq!(fault(&reports[0]), Some(expected));
        assert!(!publisher.must_renew());
        // Whoever is refused by a topic is told so by a look-up for a while, because its metadata do not show it.
        let held = TopicState::Held(HoldReason::TopicUnauthorized);
        assert_eq!(look_up(&publisher, TOPIC).await == held, expected == Fault::TopicUnauthorized);
        receipts(&deliver(&mut publisher, numbered(TOPIC, 10).collect()).await);
    }
}

#[tokio::test]
async fn what_librdkafka_mends_by_itself_is_not_reported() {
    for refusal in [MockRefusal::NotEnoughReplicas, MockRefusal::Disconnect] {
        let (broker, mut publisher) = mock().await;
        broker.refuse_produce(&[refusal, refusal]).unwrap();
        let reports = deliver(&mut publisher, numbered(TOPIC, 10).collect()).await;
        let offsets: Vec<i64> = receipts(&reports).values().map(|receipt| receipt.offset).collect();
        assert!(offsets.is_sorted(), "{offsets:?}");
    }
}

#[tokio::test]
async fn brokers_that_are_down_from_the_start_are_waited_for() {
    let (broker, _) = mock().await;
    broker.go_down().unwrap();
    let config = KafkaConfig {
        look_up_within: Duration::from_millis(300),
        ..KafkaConfig::new(broker.bootstrap_servers())
    };
    let mut publisher = with_client(config).await;
    let asked = Instant::now();
    let state = look_up(&publisher, TOPIC).await;
    assert!(matches!(state, TopicState::Unreachable(_)), "{state:?}");
    assert!(asked.elapsed() < Duration::from_secs(2), "a look-up keeps its deadline: {:?}", asked.elapsed());
    let mut reports = enqueue_all(&mut publisher, 0, numbered(TOPIC, 10)).await;
    assert_eq!(publisher.stats().queue_messages, 10);
    broker.come_up().unwrap();
    all_reports(&mut publisher, &mut reports, 10).await;
    receipts(&reports);
}

#[tokio::test]
async fn waiting_for_reports_can_be_given_up_without_losing_one() {
    let (broker, mut publisher) = mock().await;
    broker.answer_after(Duration::from_millis(20)).unwrap();
    let mut reports = Vec::new();
    enqueue_all(&mut publisher, 0, numbered(TOPIC, 500)).await;
    let ended = Instant::now() + LIMIT;
    while reports.len() < 500 && Instant::now() < ended {
        // Given up after a millisecond, again and again.
        let _in_time = timeout(Duration::from_millis(1), publisher.reports(&mut reports)).await;
    }
    assert_eq!(receipts(&reports).len(), 500);
}
