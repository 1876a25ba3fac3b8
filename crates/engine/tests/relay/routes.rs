//! Policies per topic: what can go wrong between two of a message's steps.

use outboxd_core::{OnRefused, Route, Routes, TopicPattern};

use super::*;

/// Larger than the limit of a topic that was limited to [`LITTLE`] bytes.
const MUCH: usize = 2_000;
/// Room for a small record.
const LITTLE: usize = 1_000;

fn patterns(topics: &[&str]) -> Vec<TopicPattern> {
    topics.iter().map(|topic| topic.parse::<TopicPattern>().unwrap()).collect()
}

fn route(topics: &[&str]) -> Route {
    Route { topics: patterns(topics), ..Route::default() }
}

fn skipping() -> Route {
    Route { on_refused: OnRefused::Skip, ..route(&["orders"]) }
}

fn dead_lettering() -> Route {
    Route { dead_letter: Some("dead".to_owned()), ..route(&["orders"]) }
}

fn with(route: Route) -> RelayConfig {
    RelayConfig { routes: Routes::new(patterns(&["*"]), vec![route]), ..config() }
}

/// A message that its topic refuses before it is published, if the topic was limited to [`LITTLE`] bytes.
fn large(topic: &str, key: &str) -> Written {
    Written::keyed(topic, key, &"x".repeat(MUCH))
}

/// D3. The policy that gives up a key's order for its progress: counted, and the row stays.
#[tokio::test(start_paused = true)]
async fn a_skipped_message_lets_its_key_go_on_and_stays_held() {
    let (table, broker) = (MemoryTable::default(), ScriptedBroker::with_topics(&["orders"]));
    broker.refuse("a2", Fault::InvalidRecord, u32::MAX);
    table.commit(&numbered("orders", "a", 0..6));
    let relay = Running::start_with(&table, &broker, with(skipping()));
    until("the others", || table.receipts().len() == 5).await;
    table.commit(&numbered("orders", "a", 6..9));
    until("newer ones", || table.receipts().len() == 8).await;
    let held = table.held();
    assert_eq!(held.len(), 1, "{held:?}");
    assert_eq!((held[0].state, held[0].key_hash), (HoldState::Parked, None));
    assert_eq!(broker.first_copies("a"), ["a0", "a1", "a3", "a4", "a5", "a6", "a7", "a8"]);
    let counts = relay.drained().await;
    assert_eq!((counts.skipped, counts.parked), (1, 1));
}

/// D3. As long as it is tried again its key waits, whatever the policy; once it is parked, what waited goes in order.
#[tokio::test(start_paused = true)]
async fn what_waited_behind_a_retried_message_goes_in_order_once_that_is_skipped() {
    let (table, broker) = (MemoryTable::default(), ScriptedBroker::with_topics(&["orders"]));
    broker.refuse("a0", Fault::Unknown, u32::MAX);
    table.commit(&numbered("orders", "a", 0..1));
    let skip_soon = Route { attempts_max: Some(3), ..skipping() };
    let relay = Running::start_with(&table, &broker, with(skip_soon));
    until("a0 is held", || table.held().len() == 1).await;
    table.commit(&numbered("orders", "a", 1..20));
    until("its followers wait", || table.held().len() == 20).await;
    assert_eq!(broker.first_copies("a"), [""; 0]);
    until("they have gone", || table.held().len() == 1 && table.receipts().len() == 19).await;
    let set_aside = relay.counts().set_aside;
    table.commit(&numbered("orders", "a", 20..30));
    until("newer ones", || table.receipts().len() == 29).await;
    assert_eq!(relay.counts().set_aside, set_aside, "the key is on the direct path again");
    assert_eq!(broker.first_copies("a"), payloads("a", 1..30));
    let held = table.held();
    assert_eq!((held[0].state, held[0].attempts, held[0].key_hash), (HoldState::Parked, 3, None));
    assert_eq!(relay.drained().await.skipped, 1);
}

/// D3. A skipped message's row holds no key back, so its acknowledgement sets none free.
#[tokio::test(start_paused = true)]
async fn a_skipped_message_that_is_retried_frees_nobody_elses_key() {
    let (table, broker) = (MemoryTable::default(), ScriptedBroker::with_topics(&["orders"]));
    broker.refuse("a0", Fault::InvalidRecord, 2);
    broker.refuse("a1", Fault::Unknown, 1);
    table.commit(&numbered("orders", "a", 0..1));
    // A retry comes late, so that whatever does not wait for it overtakes it.
    let config = RelayConfig { backoff_min: Duration::from_secs(20), ..with(skipping()) };
    let relay = Running::start_with(&table, &broker, config);
    until("a0 is parked", || table.held().len() == 1).await;
    table.commit(&numbered("orders", "a", 1..2));
    until("a1 is tried again later", || table.held().len() == 2).await;
    table.retry(table.held()[0].seq);
    until("a0 is out", || broker.first_copies("a") == ["a0"]).await;
    table.commit(&numbered("orders", "a", 2..5));
    until("all out", || table.receipts().len() == 5).await;
    assert_eq!(broker.first_copies("a"), payloads("a", 0..5));
    relay.drained().await;
}

#[tokio::test(start_paused = true)]
async fn a_parked_message_is_settled_with_the_place_of_its_copy() {
    let (table, broker) = (MemoryTable::default(), ScriptedBroker::with_topics(&["orders", "dead"]));
    // Once as any other, once alone: so it is known from a report that it is this message's own fault.
    broker.refuse("a0", Fault::InvalidRecord, 2);
    table.commit(&numbered("orders", "a", 0..1));
    let relay = Running::start_with(&table, &broker, with(dead_lettering()));
    until("it is parked", || table.held().len() == 1).await;
    table.commit(&numbered("orders", "a", 1..3));
    until("its followers wait", || table.held().len() == 3).await;
    let held = table.held();
    assert_eq!((held[0].state, held[0].dead_letter.as_deref()), (HoldState::Parked, Some("dead[0]@0")));
    assert_eq!((held[1].state, &held[1].dead_letter), (HoldState::Behind, &None));
    assert_eq!(broker.payloads("dead"), ["a0"]);
    table.retry(held[0].seq);
    until("all out", || table.held().is_empty()).await;
    assert_eq!(broker.payloads("orders"), payloads("a", 0..3));
    let counts = relay.drained().await;
    assert_eq!((counts.dead_lettered, counts.dead_letter_failures, counts.parked), (1, 0, 1));
}

/// D1, D4. The copy is what was interrupted: the message is charged once, and copied when Kafka is back.
#[tokio::test(start_paused = true)]
async fn an_outage_while_a_copy_is_on_its_way_charges_nothing_and_loses_no_copy() {
    let (table, broker) = (MemoryTable::default(), ScriptedBroker::with_topics(&["dead"]));
    broker.limit_topic("orders", LITTLE);
    broker.break_next_producer();
    table.commit(&[large("orders", "a")]);
    table.commit(&numbered("orders", "b", 0..3));
    let relay = Running::start_with(&table, &broker, with(dead_lettering()));
    until("it is parked", || table.held().len() == 1).await;
    assert_eq!(table.held()[0].attempts, 1);
    assert_eq!(table.held()[0].dead_letter.as_deref(), Some("dead[0]@0"));
    until("the others", || table.receipts().len() == 3).await;
    let counts = relay.drained().await;
    assert_eq!((counts.dead_lettered, counts.dead_letter_failures, counts.parked), (1, 0, 1));
    assert!(broker.renewals() >= 2);
}

/// D1. Nothing says in the database that there is a copy: the message is parked and copied again.
#[tokio::test(start_paused = true)]
async fn a_crash_between_a_copy_and_its_settle_repeats_the_copy_and_parks_once() {
    let (table, broker) = (MemoryTable::default(), ScriptedBroker::with_topics(&["dead"]));
    broker.limit_topic("orders", LITTLE);
    let config = RelayConfig { settle_every: Duration::from_secs(5), ..with(dead_lettering()) };
    let relay = Running::start_with(&table, &broker, config);
    // Of a first settle, so that the next one comes five seconds later.
    table.commit(&numbered("orders", "b", 0..1));
    until("a first settle", || table.receipts().len() == 1).await;
    table.commit(&[large("orders", "a")]);
    until("a copy", || broker.payloads("dead").len() == 1).await;
    assert!(table.held().is_empty());
    table.end_lead_session();
    until("it is parked", || table.held().len() == 1).await;
    assert_eq!(broker.payloads("dead").len(), 2);
    let held = table.held();
    assert_eq!((held[0].attempts, held[0].dead_letter.as_deref()), (1, Some("dead[0]@1")));
    let ids: Vec<String> =
        broker.log().into_iter().filter(|record| record.topic == "dead").map(|record| record.id).collect();
    assert_eq!(ids[0], ids[1]);
    assert!(relay.drained().await.duplicates >= 1, "it is told");
}

/// D1. A dead-letter topic without a leader: what it keeps back is let go after a while, and said.
#[tokio::test(start_paused = true)]
async fn a_copy_that_is_not_acknowledged_keeps_nothing_back_for_ever() {
    let (table, broker) = (MemoryTable::default(), ScriptedBroker::with_topics(&["dead"]));
    broker.limit_topic("orders", LITTLE);
    broker.silent_topic("dead", true);
    table.commit(&[large("orders", "a")]);
    let relay = Running::start_with(&table, &broker, with(dead_lettering()));
    for n in 0..200 {
        table.commit(&numbered("orders", "b", n..n + 1));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    until("everything is dealt with", || table.undispatched() == 0).await;
    let held = table.held();
    assert_eq!((held.len(), held[0].state, &held[0].dead_letter), (1, HoldState::Parked, &None));
    assert_eq!(table.receipts().len(), 200);
    assert_eq!(broker.first_copies("b"), payloads("b", 0..200));
    let counts = relay.drained().await;
    assert_eq!((counts.dead_letter_failures, counts.outages), (1, 0), "{counts:?}");
}

/// D1, D4. Nothing else is in flight that could say whether Kafka answers: silence is an outage only if it does not.
#[tokio::test(start_paused = true)]
async fn a_silent_dead_letter_topic_is_no_outage_and_an_outage_gives_no_copy_up() {
    let (table, broker) = (MemoryTable::default(), ScriptedBroker::with_topics(&["dead"]));
    broker.limit_topic("orders", LITTLE);
    broker.silent_topic("dead", true);
    let relay = Running::start_with(&table, &broker, with(dead_lettering()));
    table.commit(&[large("orders", "a")]);
    until("it is parked without its copy", || table.held().len() == 1).await;
    assert_eq!((relay.counts().dead_letter_failures, relay.counts().outages), (1, 0));
    table.commit(&numbered("orders", "b", 0..20));
    until("the others are out", || table.receipts().len() == 20).await;

    broker.silent_topic("dead", false);
    broker.silent(true);
    table.commit(&[large("orders", "c")]);
    until("the copy is with the client", || table.undispatched() == 1).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    broker.unreachable(true);
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!((table.held().len(), relay.counts().dead_letter_failures), (1, 1), "an outage parks nothing");
    broker.unreachable(false);
    broker.silent(false);
    until("it is parked and copied", || table.held().len() == 2).await;
    assert!(table.held()[1].dead_letter.is_some());
    relay.drained().await;
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_topic_that_is_missing_or_refuses_the_copy_parks_without_one() {
    let (table, broker) = (MemoryTable::default(), ScriptedBroker::default());
    broker.limit_topic("orders", LITTLE);
    let relay = Running::start_with(&table, &broker, with(dead_lettering()));
    table.commit(&[large("orders", "a")]);
    until("it is parked", || table.held().len() == 1).await;
    broker.limit_topic("dead", LITTLE);
    table.commit(&[large("orders", "b")]);
    until("it is parked too", || table.held().len() == 2).await;
    // The report about the copy: as any other, and then alone. What is known of the topic is old enough to be doubted.
    broker.limit_topic("dead", 1_000_000);
    broker.refuse(&"x".repeat(MUCH), Fault::InvalidRecord, 2);
    tokio::time::sleep(Duration::from_secs(2)).await;
    table.commit(&[large("orders", "c")]);
    until("it is parked as well", || table.held().len() == 3).await;
    assert_eq!(relay.counts().dead_letter_failures, 3);
    table.commit(&[large("orders", "d")]);
    until("the copy of the last is taken", || relay.counts().dead_lettered == 1).await;
    until("all are parked", || table.held().len() == 4).await;
    assert!(
        table
            .held()
            .iter()
            .all(|hold| hold.state == HoldState::Parked && hold.reason == HoldReason::TooLarge)
    );
    assert_eq!(relay.counts().dead_letter_failures, 3);
    relay.drained().await;
}

/// D3. Followers do not wait for the copy of a message that is skipped, and the copy waits for nothing of theirs.
#[tokio::test(start_paused = true)]
async fn a_key_that_goes_on_does_not_wait_for_the_copy() {
    let (table, broker) = (MemoryTable::default(), ScriptedBroker::with_topics(&["dead"]));
    broker.limit_topic("orders", LITTLE);
    broker.silent_topic("dead", true);
    table.commit(&[large("orders", "a")]);
    table.commit(&numbered("orders", "a", 0..20));
    let both = Route { on_refused: OnRefused::Skip, ..dead_lettering() };
    let relay = Running::start_with(&table, &broker, with(both));
    until("its key has gone on", || broker.payloads("orders") == payloads("a", 0..20)).await;
    assert!(table.held().is_empty() && table.receipts().is_empty(), "nothing is settled past it");
    broker.silent_topic("dead", false);
    until("all of it is settled", || table.held().len() == 1 && table.receipts().len() == 20).await;
    let counts = relay.drained().await;
    assert_eq!((counts.skipped, counts.dead_lettered, counts.duplicates), (1, 1, 0), "{counts:?}");
    assert_eq!(broker.log().len(), 21);
}

/// D3. A hold that waits for its copy keeps its key busy, and no release round may forget it.
#[tokio::test(start_paused = true)]
async fn a_hold_that_waits_for_its_copy_blocks_its_key_when_an_operator_acts() {
    let (table, broker) = (MemoryTable::default(), ScriptedBroker::with_topics(&["dead", "others"]));
    broker.limit_topic("orders", LITTLE);
    broker.refuse("p0", Fault::InvalidRecord, 2);
    table.commit(&numbered("others", "p", 0..1));
    let relay = Running::start_with(&table, &broker, with(dead_lettering()));
    until("p0 is parked", || table.held().len() == 1).await;
    broker.silent_topic("dead", true);
    table.commit(&[large("orders", "a")]);
    table.commit(&numbered("orders", "a", 0..3));
    tokio::time::sleep(Duration::from_secs(1)).await;
    table.retry(table.held()[0].seq);
    tokio::time::sleep(Duration::from_secs(1)).await;
    broker.silent_topic("dead", false);
    until("p0 is out", || broker.payloads("others") == ["p0"]).await;
    table.commit(&numbered("orders", "a", 3..5));
    until("all wait", || table.held().len() == 6).await;
    assert!(broker.payloads("orders").is_empty());
    relay.drained().await;
}

/// D3. What is held keeps the name that it was held under: newer messages of its key under another name do not wait for it.
#[tokio::test(start_paused = true)]
async fn what_was_held_before_a_topic_got_its_prefix_goes_beside_newer_messages_and_is_counted() {
    let (table, broker) = (MemoryTable::default(), ScriptedBroker::default());
    table.commit(&numbered("orders", "a", 0..3));
    let relay = Running::start_with(&table, &broker, with(route(&["*"])));
    until("3 are held", || table.held().len() == 3).await;
    assert_eq!(relay.drained().await.overtaken, 0);

    broker.create_topic("v2.orders");
    table.commit(&numbered("orders", "a", 3..6));
    let prefixed = Route { topic_prefix: "v2.".to_owned(), ..route(&["*"]) };
    let relay = Running::start_with(&table, &broker, with(prefixed));
    until("all are out", || table.receipts().len() == 6).await;
    let mut arrived = broker.payloads("v2.orders");
    let positions = |of: &[&str]| {
        let place = |payload: &&str| arrived.iter().position(|its| its == payload).unwrap();
        of.iter().map(place).collect::<Vec<_>>()
    };
    assert!(positions(&["a0", "a1", "a2"]).is_sorted() && positions(&["a3", "a4", "a5"]).is_sorted());
    arrived.sort();
    assert_eq!(arrived, payloads("a", 0..6));
    assert_eq!(relay.drained().await.overtaken, 3, "each of those that were held");
}

#[tokio::test(start_paused = true)]
async fn everything_speaks_of_the_topic_at_kafka() {
    let (table, broker) = (MemoryTable::default(), ScriptedBroker::with_topics(&["staging.orders"]));
    let staged = Route { topic_prefix: "staging.".to_owned(), ..route(&["*"]) };
    let routes = Routes::new(patterns(&["orders", "missing", "__*"]), vec![staged]);
    table.commit(&numbered("orders", "a", 0..3));
    table.commit(&numbered("missing", "m", 0..1));
    table.commit(&numbered("payments", "p", 0..1));
    table.commit(&numbered("pay/ments", "q", 0..1));
    let relay = Running::start_with(&table, &broker, RelayConfig { routes, ..config() });
    until("all are dealt with", || table.undispatched() == 0).await;
    assert!(table.receipts().iter().all(|receipt| receipt.topic == "staging.orders"));
    let held: Vec<_> = table.held().into_iter().map(|hold| (hold.topic, hold.reason)).collect();
    let expected = [
        ("staging.missing", HoldReason::TopicUnknown),
        ("staging.payments", HoldReason::TopicNotAllowed),
        ("staging.pay/ments", HoldReason::IllegalTopic),
    ];
    assert_eq!(held, expected.map(|(topic, reason)| (topic.to_owned(), reason)));
    // In its order still, when it is released.
    table.commit(&numbered("missing", "m", 1..4));
    until("they wait for their topic", || table.held().len() == 6).await;
    broker.create_topic("staging.missing");
    until("they are out", || broker.payloads("staging.missing") == payloads("m", 0..4)).await;
    assert!(broker.look_ups() < 20, "what goes nowhere is not looked up: {}", broker.look_ups());
    relay.drained().await;
}

#[tokio::test(start_paused = true)]
async fn another_number_of_partitions_is_told_once() {
    let (table, broker) = (MemoryTable::default(), ScriptedBroker::with_topics(&["orders", "quiet"]));
    let relay = Running::start(&table, &broker);
    table.commit(&numbered("orders", "a", 0..1));
    table.commit(&numbered("quiet", "q", 0..1));
    until("both are known", || table.receipts().len() == 2).await;
    broker.partition_topic("orders", 3);
    for n in 1..1_000 {
        table.commit(&numbered("orders", "a", n..n + 1));
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert_eq!(relay.counts().partition_changes, 1);
    // Nobody has asked about this one for minutes.
    broker.partition_topic("quiet", 2);
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(relay.counts().partition_changes, 1);
    table.commit(&numbered("quiet", "q", 1..2));
    until("also of one that was forgotten", || relay.counts().partition_changes == 2).await;
    relay.drained().await;
}
