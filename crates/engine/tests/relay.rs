//! The loop over scripted ports, on a paused clock: what cannot be made to happen with a real broker on demand.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends there")]
use std::sync::{Arc, Mutex};
use std::time::Duration;

use outboxd_core::{Fault, HoldReason, HoldState};
use outboxd_engine::{
    Event, Observe, Outcome, PageLimit, Relay, RelayConfig, RelayError, RewindReason, Side,
};
use outboxd_testkit::scripted::{MemoryTable, ScriptedBroker, Written};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

#[path = "relay/attempts.rs"]
mod attempts;

#[path = "relay/caution.rs"]
mod caution;

#[path = "relay/replay.rs"]
mod replay;

#[path = "relay/routes.rs"]
mod routes;

#[derive(Debug, Default)]
struct Seen(Mutex<Counts>);

#[derive(Clone, Debug, Default)]
struct Counts {
    duplicates: u64,
    outages: u32,
    outages_over: u32,
    kafka_outages_over: u32,
    terms: u32,
    retried: u32,
    refused_settles: u32,
    parked: u32,
    set_aside: u32,
    enqueued: usize,
    overtaken: u32,
    stranded: usize,
    skipped: u32,
    dead_lettered: u32,
    dead_letter_failures: u32,
    partition_changes: u32,
    replayed: u32,
}

impl Observe for Seen {
    fn observe(&self, event: &Event<'_>) {
        let mut counts = self.0.lock().unwrap();
        match event {
            Event::PossibleDuplicates { messages } => counts.duplicates += messages,
            Event::OutageBegan { .. } => counts.outages += 1,
            Event::OutageEnded { side, .. } => {
                counts.outages_over += 1;
                counts.kafka_outages_over += u32::from(*side == Side::Kafka);
            }
            Event::Leading { .. } => counts.terms += 1,
            Event::Attempt { outcome: Outcome::Retry, .. } => counts.retried += 1,
            Event::SettleRefused => counts.refused_settles += 1,
            Event::Held { parked: true, .. } => counts.parked += 1,
            Event::Held { parked: false, .. } => counts.set_aside += 1,
            Event::Enqueued { messages } => counts.enqueued += messages,
            Event::Overtaken => counts.overtaken += 1,
            Event::SweepTurn(swept) => counts.stranded += swept.stranded.len(),
            Event::Skipped => counts.skipped += 1,
            Event::DeadLettered => counts.dead_lettered += 1,
            Event::DeadLetterFailed => counts.dead_letter_failures += 1,
            Event::PartitionsChanged => counts.partition_changes += 1,
            Event::Replayed { .. } => counts.replayed += 1,
            _ => {}
        }
    }
}

/// A relay under test, drained at the end.
struct Running {
    drain: CancellationToken,
    task: JoinHandle<Result<(), RelayError>>,
    seen: Arc<Seen>,
}

impl Running {
    fn start(table: &MemoryTable, broker: &ScriptedBroker) -> Self {
        Self::start_with(table, broker, config())
    }

    #[expect(clippy::disallowed_methods, reason = "the test owns the task and observes its end")]
    fn start_with(table: &MemoryTable, broker: &ScriptedBroker, config: RelayConfig) -> Self {
        let seen = Arc::new(Seen::default());
        let observer: Arc<dyn Observe> = Arc::clone(&seen) as Arc<dyn Observe>;
        let relay = Relay::new(table.outbox(), broker.publisher(), config, observer, 1);
        let drain = CancellationToken::new();
        let task = tokio::spawn(relay.run(drain.clone()));
        Self { drain, task, seen }
    }

    fn counts(&self) -> Counts {
        self.seen.0.lock().unwrap().clone()
    }

    async fn drained(self) -> Counts {
        self.drain.cancel();
        self.task.await.unwrap().unwrap();
        self.seen.0.lock().unwrap().clone()
    }
}

fn config() -> RelayConfig {
    RelayConfig {
        page: PageLimit { messages: 10, bytes: 1 << 20 },
        in_flight_messages: 100,
        outage_after: Duration::from_secs(5),
        ..RelayConfig::default()
    }
}

/// Waits for a state; the clock is paused, so this takes no time.
async fn until(what: &str, mut state: impl FnMut() -> bool) {
    for _ in 0..60_000 {
        if state() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("never came: {what}");
}

fn numbered(topic: &str, key: &str, numbers: std::ops::Range<u32>) -> Vec<Written> {
    numbers.map(|n| Written::keyed(topic, key, &format!("{key}{n}"))).collect()
}

fn payloads(key: &str, numbers: std::ops::Range<u32>) -> Vec<String> {
    numbers.map(|n| format!("{key}{n}")).collect()
}

#[tokio::test(start_paused = true)]
async fn every_committed_intent_is_published_once_in_order_with_a_receipt() {
    let (table, broker) = (MemoryTable::default(), ScriptedBroker::with_topics(&["orders"]));
    table.commit(&numbered("orders", "a", 0..57));
    let relay = Running::start(&table, &broker);
    until("57 receipts", || table.receipts().len() == 57).await;
    table.commit(&numbered("orders", "a", 57..60));
    until("60 receipts", || table.receipts().len() == 60).await;
    assert_eq!(broker.first_copies("a"), payloads("a", 0..60));
    assert_eq!(broker.log().len(), 60);
    for (nth, receipt) in (0_i64..).zip(table.receipts()) {
        assert_eq!(receipt.receipt.offset, nth);
    }
    assert_eq!(relay.drained().await.duplicates, 0);
}

#[tokio::test(start_paused = true)]
async fn late_messages_in_more_than_a_page_are_caught_up_without_loss() {
    let (table, broker) = (MemoryTable::default(), ScriptedBroker::with_topics(&["orders"]));
    let bulk = table.draw(95);
    table.commit(&numbered("orders", "overtaker", 0..30));
    let relay = Running::start(&table, &broker);
    until("the overtakers", || table.receipts().len() == 30).await;
    table.commit_at(&bulk, &numbered("orders", "bulk", 0..95));
    table.commit(&numbered("orders", "overtaker", 30..40));
    until("everything", || table.receipts().len() == 135).await;
    assert_eq!(broker.first_copies("bulk"), payloads("bulk", 0..95));
    assert_eq!(broker.first_copies("overtaker"), payloads("overtaker", 0..40));
    assert_eq!(broker.log().len(), 135, "nothing twice");
    relay.drained().await;
}

#[tokio::test(start_paused = true)]
async fn nothing_is_settled_before_it_is_acknowledged() {
    let (table, broker) = (MemoryTable::default(), ScriptedBroker::with_topics(&["orders"]));
    broker.silent(true);
    table.commit(&numbered("orders", "a", 0..20));
    let relay = Running::start(&table, &broker);
    until("all enqueued", || relay.counts().enqueued == 20).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!((table.settles(), table.receipts().len()), (0, 0));
    assert_eq!(relay.counts().outages, 1, "silence is an outage");
    broker.silent(false);
    until("20 receipts", || table.receipts().len() == 20).await;
    let counts = relay.drained().await;
    assert_eq!((counts.outages_over, counts.duplicates, broker.log().len()), (1, 0, 20));
}

#[tokio::test(start_paused = true)]
async fn an_outage_from_the_start_is_ridden_out_and_charges_nothing() {
    let (table, broker) = (MemoryTable::default(), ScriptedBroker::with_topics(&["orders"]));
    table.available(false);
    broker.unreachable(true);
    table.commit(&numbered("orders", "a", 0..5));
    let relay = Running::start(&table, &broker);
    tokio::time::sleep(Duration::from_secs(3_600)).await;
    table.available(true);
    tokio::time::sleep(Duration::from_secs(3_600)).await;
    assert!(table.held().is_empty());
    broker.unreachable(false);
    until("5 receipts", || table.receipts().len() == 5).await;
    assert!(table.held().is_empty());
    assert_eq!(relay.drained().await.outages, 2);
}

#[tokio::test(start_paused = true)]
async fn an_unknown_topic_holds_its_own_messages_alone_and_releases_them_in_order() {
    let (table, broker) = (MemoryTable::default(), ScriptedBroker::with_topics(&["orders"]));
    let relay = Running::start(&table, &broker);
    table.commit(&numbered("missing", "m", 0..25));
    table.commit(&numbered("orders", "a", 0..25));
    until("the other topic", || table.receipts().len() == 25).await;
    until("25 held", || table.held().len() == 25).await;
    assert!(table.held().iter().all(|hold| hold.state == HoldState::Topic
        && hold.reason == HoldReason::TopicUnknown
        && hold.attempts == 0));
    broker.create_topic("missing");
    table.commit(&numbered("missing", "m", 25..40));
    until("the held ones", || table.receipts().len() == 65 && table.held().is_empty()).await;
    assert_eq!(broker.first_copies("m"), payloads("m", 0..40));
    // The key is on the direct path again: a new message is never a held row.
    table.commit(&numbered("missing", "m", 40..41));
    until("the direct path", || table.receipts().len() == 66).await;
    assert_eq!(relay.drained().await.duplicates, 0);
}

#[tokio::test(start_paused = true)]
async fn a_key_under_constant_traffic_returns_to_the_direct_path() {
    let (table, broker) = (MemoryTable::default(), ScriptedBroker::with_topics(&["orders"]));
    let relay = Running::start(&table, &broker);
    table.commit(&numbered("missing", "m", 0..3));
    until("3 held", || table.held().len() == 3).await;
    broker.create_topic("missing");
    for n in 3..2_000 {
        table.commit(&numbered("missing", "m", n..n + 1));
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert!(table.held().is_empty(), "still held after 4 s of traffic: {}", table.held().len());
    until("everything", || table.receipts().len() == 2_000).await;
    assert_eq!(broker.first_copies("m"), payloads("m", 0..2_000));
    relay.drained().await;
}

#[tokio::test(start_paused = true)]
async fn one_poison_message_fails_its_batch_and_is_parked_alone() {
    let (table, broker) = (MemoryTable::default(), ScriptedBroker::with_topics(&["orders"]));
    broker.poison("a4");
    table.commit(&numbered("orders", "a", 0..8));
    table.commit(&numbered("orders", "b", 0..30));
    let relay = Running::start(&table, &broker);
    until("the others", || table.receipts().len() == 4 + 30).await;
    let held = table.held();
    assert_eq!(held.len(), 4, "{held:?}");
    assert_eq!((held[0].state, held[0].reason), (HoldState::Parked, HoldReason::TooLarge));
    assert!(held[1..].iter().all(|hold| hold.state == HoldState::Behind && hold.attempts == 0));
    let mut others = broker.first_copies("b");
    others.sort_by_key(|payload| payload[1..].parse::<u32>().unwrap());
    assert_eq!(others, payloads("b", 0..30));
    let counts = relay.counts();
    assert_eq!(counts.parked, 1);
    // b0 and b1 travelled with the poison, later ones did not: the exception to D3, which is counted.
    assert!(counts.overtaken >= 2, "{counts:?}");
    relay.drained().await;
}

#[tokio::test(start_paused = true)]
async fn a_retried_head_goes_out_before_its_followers_and_newer_messages() {
    let (table, broker) = (MemoryTable::default(), ScriptedBroker::with_topics(&["orders"]));
    broker.refuse("a0", Fault::InvalidRecord, 2);
    table.commit(&numbered("orders", "a", 0..1));
    let relay = Running::start(&table, &broker);
    until("a0 parked", || table.held().len() == 1).await;
    table.commit(&numbered("orders", "a", 1..30));
    until("followers", || table.held().len() == 30).await;
    table.retry(table.held()[0].seq);
    until("all out", || table.receipts().len() == 30 && table.held().is_empty()).await;
    table.commit(&numbered("orders", "a", 30..35));
    until("newer ones", || table.receipts().len() == 35).await;
    assert_eq!(broker.first_copies("a"), payloads("a", 0..35));
    relay.drained().await;
}

#[tokio::test(start_paused = true)]
async fn a_retried_message_is_judged_by_what_its_topic_takes_now() {
    let (table, broker) = (MemoryTable::default(), ScriptedBroker::with_topics(&[]));
    broker.limit_topic("orders", 1);
    table.commit(&numbered("orders", "a", 0..1));
    let relay = Running::start(&table, &broker);
    until("a0 parked", || table.held().len() == 1).await;
    // At once: what is known of the topic is less than a second old.
    broker.limit_topic("orders", 1_000_000);
    table.retry(table.held()[0].seq);
    until("a0 out", || table.held().is_empty()).await;
    assert_eq!(relay.counts().parked, 1);
    relay.drained().await;
}

#[tokio::test(start_paused = true)]
async fn a_discarded_head_frees_its_followers() {
    let (table, broker) = (MemoryTable::default(), ScriptedBroker::with_topics(&["orders"]));
    broker.refuse("a0", Fault::InvalidRecord, u32::MAX);
    table.commit(&numbered("orders", "a", 0..1));
    let relay = Running::start(&table, &broker);
    until("a0 parked", || table.held().len() == 1).await;
    table.commit(&numbered("orders", "a", 1..10));
    until("followers", || table.held().len() == 10).await;
    table.discard(table.held()[0].seq);
    until("followers out", || table.receipts().len() == 9 && table.held().is_empty()).await;
    table.commit(&numbered("orders", "a", 10..12));
    until("newer ones", || table.receipts().len() == 11).await;
    assert!(table.held().is_empty());
    assert_eq!(broker.first_copies("a"), payloads("a", 1..12));
    relay.drained().await;
}

#[tokio::test(start_paused = true)]
async fn an_unknown_error_is_retried_with_back_off_and_then_parked() {
    let (table, broker) = (MemoryTable::default(), ScriptedBroker::with_topics(&["orders"]));
    broker.refuse("a0", Fault::Unknown, u32::MAX);
    broker.refuse("b0", Fault::Unknown, 3);
    table.commit(&numbered("orders", "a", 0..1));
    table.commit(&numbered("orders", "b", 0..1));
    let relay = Running::start(&table, &broker);
    until("both held", || table.held().len() == 2).await;
    table.commit(&numbered("orders", "b", 1..2));
    until("b out", || broker.first_copies("b") == payloads("b", 0..2)).await;
    until("a0 parked", || table.held().iter().any(|hold| hold.state == HoldState::Parked)).await;
    let held = table.held();
    assert_eq!((held.len(), held[0].reason, held[0].attempts), (1, HoldReason::AttemptsExhausted, 10));
    relay.drained().await;
}

#[tokio::test(start_paused = true)]
async fn a_broken_producer_is_made_anew_and_only_costs_duplicates() {
    let (table, broker) = (MemoryTable::default(), ScriptedBroker::with_topics(&["orders"]));
    let relay = Running::start(&table, &broker);
    table.commit(&numbered("orders", "a", 0..5));
    until("5 receipts", || table.receipts().len() == 5).await;
    broker.break_next_producer();
    table.commit(&numbered("orders", "a", 5..40));
    until("40 receipts", || table.receipts().len() == 40).await;
    assert_eq!(broker.first_copies("a"), payloads("a", 0..40));
    assert!(broker.renewals() >= 2, "one for the term, one for the producer that broke");
    let rewinds = table.rewinds();
    assert!(!rewinds.is_empty() && rewinds.iter().all(|rewound| rewound.reason == RewindReason::Outage));
    assert!(rewinds[0].first.0 > 5 && rewinds[0].messages > 0, "{rewinds:?}");
    assert!(table.held().is_empty());
    relay.drained().await;
}

#[tokio::test(start_paused = true)]
async fn a_lost_lead_session_drops_everything_and_starts_from_the_cursor() {
    let (table, broker) = (MemoryTable::default(), ScriptedBroker::with_topics(&["orders"]));
    broker.silent(true);
    table.commit(&numbered("orders", "a", 0..20));
    let relay = Running::start(&table, &broker);
    until("all enqueued", || relay.counts().enqueued >= 20).await;
    table.end_lead_session();
    until("a new term", || relay.counts().duplicates >= 20).await;
    broker.silent(false);
    until("20 receipts", || table.receipts().len() == 20).await;
    assert_eq!(broker.first_copies("a"), payloads("a", 0..20));
    relay.drained().await;
}

#[tokio::test(start_paused = true)]
async fn a_zombie_leader_is_refused_and_stands_by() {
    let (table, broker) = (MemoryTable::default(), ScriptedBroker::with_topics(&["orders"]));
    broker.silent(true);
    table.commit(&numbered("orders", "a", 0..20));
    let zombie = Running::start(&table, &broker);
    until("all enqueued", || zombie.counts().enqueued == 20).await;
    // Another relay takes the lead although the first still believes to have it.
    table.end_lead_session();
    let other = table.outbox();
    outboxd_engine::Outbox::lead(&other).await.unwrap().expect("the lead is free");
    broker.silent(false);
    until("the zombie's settle is refused", || zombie.counts().refused_settles == 1).await;
    assert!(table.receipts().is_empty(), "a fenced settle stores nothing");
    outboxd_engine::Outbox::step_down(&other).await;
    until("20 receipts", || table.receipts().len() == 20).await;
    zombie.drained().await;
}

#[tokio::test(start_paused = true)]
async fn a_drain_settles_what_is_acknowledged_and_leaves_the_rest_in_the_outbox() {
    let (table, broker) = (MemoryTable::default(), ScriptedBroker::with_topics(&["orders"]));
    table.commit(&numbered("orders", "a", 0..500));
    let relay = Running::start(&table, &broker);
    until("some receipts", || !table.receipts().is_empty()).await;
    let counts = relay.drained().await;
    assert_eq!(counts.duplicates, 0);
    let settled = table.receipts().len();
    assert_eq!(table.undispatched(), 500 - settled);
    assert_eq!(broker.log().len(), settled);
    let second = Running::start(&table, &broker);
    until("the rest", || table.receipts().len() == 500).await;
    assert_eq!(broker.log().len(), 500);
    second.drained().await;
}

#[tokio::test(start_paused = true)]
async fn a_drain_with_a_silent_broker_ends_within_the_grace_period() {
    let (table, broker) = (MemoryTable::default(), ScriptedBroker::with_topics(&["orders"]));
    broker.silent(true);
    table.commit(&numbered("orders", "a", 0..20));
    let relay = Running::start(&table, &broker);
    until("all enqueued", || relay.counts().enqueued == 20).await;
    let began = tokio::time::Instant::now();
    let counts = relay.drained().await;
    assert!(began.elapsed() <= config().grace, "{:?}", began.elapsed());
    assert_eq!((counts.duplicates, table.receipts().len()), (20, 0));
}

#[tokio::test(start_paused = true)]
async fn a_look_up_that_ends_with_its_term_is_asked_again() {
    let (table, broker) = (MemoryTable::default(), ScriptedBroker::with_topics(&["orders"]));
    broker.mute_look_ups(true);
    table.commit(&numbered("orders", "a", 0..3));
    let relay = Running::start(&table, &broker);
    until("the topic is asked for", || broker.look_ups() > 0).await;
    broker.mute_look_ups(false);
    table.end_lead_session();
    until("3 receipts", || table.receipts().len() == 3).await;
    relay.drained().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_released_with_a_head_that_is_parked_stays_behind_it() {
    let (table, broker) = (MemoryTable::default(), ScriptedBroker::default());
    let large = "m0".repeat(5_000);
    table.commit(&[Written::keyed("late", "m", &large), Written::keyed("late", "m", "m1")]);
    let relay = Running::start(&table, &broker);
    until("both wait for their topic", || table.held().len() == 2).await;
    broker.limit_topic("late", 5_000);
    until("the head is parked", || table.held()[0].state == HoldState::Parked).await;
    table.commit(&[Written::keyed("late", "m", "m2")]);
    until("the rest waits", || table.held().len() == 3).await;
    assert_eq!(table.held()[1].state, HoldState::Behind);
    assert!(broker.log().is_empty(), "{:?}", broker.first_copies("m"));
    broker.limit_topic("late", 1_000_000);
    table.retry(table.held()[0].seq);
    until("all out", || table.held().is_empty()).await;
    assert_eq!(broker.first_copies("m"), [&large, "m1", "m2"]);
    relay.drained().await;
}

#[tokio::test(start_paused = true)]
async fn a_hold_that_is_decided_while_an_answer_about_holds_is_on_its_way_still_blocks_its_key() {
    let (table, broker) = (MemoryTable::default(), ScriptedBroker::with_topics(&["orders"]));
    // In company, and alone.
    broker.refuse("p0", Fault::InvalidRecord, 2);
    table.commit(&numbered("orders", "p", 0..1));
    let relay = Running::start_with(
        &table,
        &broker,
        // A retry comes late, so that whatever does not wait for it overtakes it.
        RelayConfig { backoff_min: Duration::from_secs(20), ..config() },
    );
    until("p0 is parked", || table.held().len() == 1).await;
    broker.silent(true);
    broker.refuse("a0", Fault::Unknown, 1);
    table.commit(&numbered("orders", "a", 0..1));
    until("a0 is with the client", || relay.counts().enqueued == 2).await;
    table.due_takes(Duration::from_secs(2));
    table.retry(table.held()[0].seq);
    // The answer is made within a second and comes two later; a0 fails in between.
    tokio::time::sleep(Duration::from_secs(1)).await;
    broker.silent(false);
    until("p0 is out", || broker.first_copies("p").len() == 1).await;
    table.commit(&numbered("orders", "a", 1..3));
    until("all out", || table.receipts().len() == 4).await;
    assert_eq!(broker.first_copies("a"), payloads("a", 0..3));
    relay.drained().await;
}

#[tokio::test(start_paused = true)]
async fn a_hold_that_is_not_a_row_yet_still_blocks_its_key_when_an_operator_acts() {
    let (table, broker) = (MemoryTable::default(), ScriptedBroker::with_topics(&["orders"]));
    broker.refuse("p0", Fault::InvalidRecord, 2);
    broker.refuse("a0", Fault::Unknown, 1);
    table.commit(&numbered("orders", "p", 0..1));
    // A retry comes late, and a hold becomes a row late.
    let config = RelayConfig {
        backoff_min: Duration::from_secs(20),
        settle_every: Duration::from_secs(5),
        ..config()
    };
    let relay = Running::start_with(&table, &broker, config);
    until("p0 is parked", || table.held().len() == 1).await;
    table.commit(&numbered("orders", "a", 0..1));
    until("a0 has failed", || relay.counts().retried == 1).await;
    assert_eq!(table.held().len(), 1, "a0 is no row yet");
    table.retry(table.held()[0].seq);
    until("p0 is out", || broker.first_copies("p").len() == 1).await;
    table.commit(&numbered("orders", "a", 1..3));
    until("all out", || table.receipts().len() == 4).await;
    assert_eq!(broker.first_copies("a"), payloads("a", 0..3));
    relay.drained().await;
}

#[tokio::test(start_paused = true)]
async fn a_keyless_hold_that_is_settled_while_an_older_answer_is_on_its_way_is_asked_about_again() {
    let (table, broker) = (MemoryTable::default(), ScriptedBroker::default());
    let config = RelayConfig { settle_every: Duration::from_secs(5), ..config() };
    let relay = Running::start_with(&table, &broker, config);
    // Of a first settle, so that the next one comes five seconds later.
    table.commit(&numbered("early", "k", 0..1));
    until("a first hold", || table.held().len() == 1).await;
    broker.create_topic("early");
    until("it is out", || table.held().is_empty()).await;
    table.signal_takes(Duration::from_secs(8));
    table.commit(&[Written {
        topic: "late".into(),
        key: None,
        payload: Some(b"x".to_vec()),
        deliver_in: None,
    }]);
    until("it is held", || table.held().len() == 1).await;
    // The answer to a question that was asked before it was a row says that nothing is held.
    tokio::time::sleep(Duration::from_secs(20)).await;
    table.signal_takes(Duration::ZERO);
    broker.create_topic("late");
    until("it is out", || table.receipts().len() == 2).await;
    relay.drained().await;
}

/// Its time is the only thing to wake up for.
#[tokio::test(start_paused = true)]
async fn a_scheduled_message_is_published_at_its_time_although_nothing_else_happens() {
    let (table, broker) = (MemoryTable::default(), ScriptedBroker::with_topics(&["orders"]));
    let hour = Duration::from_secs(3_600);
    // A settle comes late, so that the first question whether anything is held comes before it is a row.
    let config = RelayConfig { settle_every: Duration::from_secs(5), ..config() };
    let relay = Running::start_with(&table, &broker, config);
    let later =
        |payload: &str, after| Written { deliver_in: Some(after), ..Written::keyed("orders", "a", payload) };
    table.commit(&[later("a0", hour), Written::keyed("orders", "a", "a1"), later("a2", hour / 2)]);
    until("a1 is out, and the others wait", || table.scheduled().len() == 2).await;
    assert_eq!(broker.first_copies("a"), ["a1"]);
    tokio::time::sleep(hour / 2 - Duration::from_secs(30)).await;
    assert_eq!(broker.first_copies("a"), ["a1"], "nothing before its time");
    tokio::time::sleep(Duration::from_secs(31)).await;
    assert_eq!(broker.first_copies("a"), ["a1", "a2"], "within a second of it");
    tokio::time::sleep(hour / 2).await;
    assert_eq!(broker.first_copies("a"), ["a1", "a2", "a0"]);
    assert_eq!((table.receipts().len(), table.held().len()), (3, 0));
    assert_eq!(relay.drained().await.duplicates, 0);
}

/// D3. One that is due and cannot be published keeps newer ones of its key back; when it is out, its key is free, and not before
/// others of it that are held.
#[tokio::test(start_paused = true)]
async fn a_scheduled_message_that_is_due_counts_for_its_key_until_it_is_published() {
    let (table, broker) = (MemoryTable::default(), ScriptedBroker::with_topics(&["orders"]));
    let relay = Running::start(&table, &broker);
    let later = |payload: &str| Written {
        deliver_in: Some(Duration::from_secs(60)),
        ..Written::keyed("orders", "a", payload)
    };
    table.commit(&[later("a0"), later("a1")]);
    until("they wait", || table.scheduled().len() == 2).await;
    // a0 fails once, unlike anything known: it is tried again later, and a1 stays behind it.
    broker.refuse("a0", Fault::Unknown, 1);
    tokio::time::sleep(Duration::from_secs(59)).await;
    until("a0 has failed", || relay.counts().retried == 1).await;
    table.commit(&numbered("orders", "a", 2..30));
    until("all out", || table.receipts().len() == 30).await;
    let first_copies = broker.first_copies("a");
    let place = |payload: &str| first_copies.iter().position(|copy| copy == payload).unwrap();
    assert!(place("a0") < place("a2"), "{first_copies:?}");
    // a1 may have been with the client when a0 failed; what was written after that may not have overtaken either.
    assert!(place("a1") < place("a2"), "{first_copies:?}");
    assert_eq!(
        first_copies
            .iter()
            .filter(|copy| !["a0", "a1"].contains(&copy.as_str()))
            .cloned()
            .collect::<Vec<_>>(),
        payloads("a", 2..30)
    );
    table.commit(&numbered("orders", "a", 30..40));
    until("the key is on the direct path again", || table.receipts().len() == 40).await;
    assert_eq!(table.held().len(), 0);
    relay.drained().await;
}

/// D3. It is counted from the moment on in which it has become a held message, also if it waits behind another one.
#[tokio::test(start_paused = true)]
async fn a_scheduled_message_behind_a_held_one_is_not_overtaken_when_that_one_is_out() {
    let (table, broker) = (MemoryTable::default(), ScriptedBroker::with_topics(&["orders"]));
    broker.refuse("a0", Fault::Unknown, 1);
    let config = RelayConfig {
        backoff_min: Duration::from_secs(60),
        backoff_max: Duration::from_secs(120),
        ..config()
    };
    let relay = Running::start_with(&table, &broker, config);
    table.commit(&numbered("orders", "a", 0..1));
    until("a0 has failed", || table.held().len() == 1).await;
    let due_in = table.held()[0].due_in;
    let soon = Written { deliver_in: Some(due_in / 4), ..Written::keyed("orders", "a", "a1") };
    table.commit(&[soon]);
    until("a1 waits behind a0", || table.held().len() == 2).await;
    // So that a1 does not follow at once.
    table.signal_takes(Duration::from_secs(5));
    until("a0 is out", || broker.first_copies("a").len() == 1).await;
    table.commit(&numbered("orders", "a", 2..3));
    until("all out", || table.receipts().len() == 3).await;
    assert_eq!(broker.first_copies("a"), payloads("a", 0..3));
    relay.drained().await;
}

#[tokio::test(start_paused = true)]
async fn a_page_as_large_as_all_that_may_be_in_flight_is_read() {
    let (table, broker) = (MemoryTable::default(), ScriptedBroker::with_topics(&["orders"]));
    table.commit(&numbered("orders", "a", 0..3));
    // No whole number of KiB.
    let config = RelayConfig {
        page: PageLimit { messages: 10, bytes: 5_000_000 },
        in_flight_bytes: 5_000_000,
        ..config()
    };
    let relay = Running::start_with(&table, &broker, config);
    until("3 receipts", || table.receipts().len() == 3).await;
    relay.drained().await;
}

#[tokio::test(start_paused = true)]
async fn a_lead_that_comes_to_nothing_is_taken_again_ever_more_slowly_and_is_one_outage() {
    let (table, broker) = (MemoryTable::default(), ScriptedBroker::with_topics(&["orders"]));
    table.reads_fail(true);
    table.commit(&numbered("orders", "a", 0..3));
    let relay = Running::start(&table, &broker);
    tokio::time::sleep(Duration::from_secs(300)).await;
    let counts = relay.counts();
    assert!((5..60).contains(&counts.terms), "{counts:?}");
    assert_eq!((counts.outages, counts.outages_over), (1, 0), "{counts:?}");
    table.reads_fail(false);
    until("3 receipts", || table.receipts().len() == 3).await;
    until("the outage is over", || relay.counts().outages_over == 1).await;
    relay.drained().await;
}

#[tokio::test(start_paused = true)]
async fn who_loses_the_lead_says_nothing_of_kafka_any_more() {
    let (table, broker) = (MemoryTable::default(), ScriptedBroker::with_topics(&["orders"]));
    broker.unreachable(true);
    table.commit(&numbered("orders", "a", 0..3));
    let relay = Running::start(&table, &broker);
    until("an outage", || relay.counts().outages == 1).await;
    table.end_lead_session();
    until("it is over for this relay", || relay.counts().kafka_outages_over == 1).await;
    broker.unreachable(false);
    until("3 receipts", || table.receipts().len() == 3).await;
    relay.drained().await;
}

/// D1. What the sweep finds goes out in the order of its key: before what waits behind it, and without disturbing anybody else.
#[tokio::test(start_paused = true)]
async fn a_stranded_message_is_found_published_and_told_of() {
    let (table, broker) = (MemoryTable::default(), ScriptedBroker::with_topics(&["orders"]));
    table.commit(&numbered("orders", "a", 0..20));
    let config = RelayConfig { sweep_every: Duration::from_secs(10), sweep_rows: 7, ..config() };
    let relay = Running::start_with(&table, &broker, config);
    until("all are dispatched", || table.receipts().len() == 20).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(relay.counts().stranded, 0);
    assert_eq!(broker.log().len(), 20, "a sweep that finds nothing publishes nothing");
    table.strand(table.intents()[3]);
    until("it was found and dispatched", || table.receipts().len() == 20 && table.held().is_empty()).await;
    let log = broker.log();
    assert_eq!(log.len(), 21);
    assert_eq!(log[20].payload.as_deref(), Some("a3"));
    assert_eq!(relay.drained().await.stranded, 1);
}

/// A copy of the database that reaches another Kafka publishes nothing there; with the one that it knows it goes on.
#[tokio::test(start_paused = true)]
async fn a_relay_that_reaches_another_kafka_cluster_publishes_nothing_and_ends() {
    let (table, broker) = (MemoryTable::default(), ScriptedBroker::with_topics(&["orders"]));
    broker.unreachable(true);
    table.commit(&numbered("orders", "a", 0..3));
    let relay = Running::start(&table, &broker);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(relay.counts().outages, 1);
    broker.unreachable(false);
    until("it goes on", || table.receipts().len() == 3).await;
    relay.drained().await;

    table.commit(&numbered("orders", "a", 3..6));
    let other = ScriptedBroker::with_topics(&["orders"]);
    other.cluster("staging");
    let relay = Running::start(&table, &other);
    let refused = relay.task.await.unwrap().unwrap_err();
    let text = outboxd_engine::chain(&refused);
    assert!(
        text.contains("scripted") && text.contains("staging") && text.contains("outboxd rebase"),
        "{text}"
    );
    assert_eq!(other.log(), []);

    let relay = Running::start(&table, &broker);
    until("the one that is known", || table.receipts().len() == 6).await;
    relay.drained().await;
}

#[tokio::test(start_paused = true)]
async fn a_message_that_is_moved_to_another_topic_leaves_its_key_and_blocks_its_new_one() {
    let (table, broker) = (MemoryTable::default(), ScriptedBroker::with_topics(&["orders", "payments"]));
    broker.refuse("a0", Fault::InvalidRecord, 2);
    table.commit(&numbered("orders", "a", 0..1));
    let relay = Running::start(&table, &broker);
    until("a0 parked", || table.held().len() == 1).await;
    table.commit(&numbered("orders", "a", 1..4));
    until("its followers", || table.held().len() == 4).await;
    let moved = table.held()[0].seq;
    table.move_to_topic(moved, "payments");
    until("the followers go without it", || table.receipts().len() == 3).await;
    table.commit(&numbered("payments", "a", 10..12));
    until("its new key waits for it", || table.held().len() == 3).await;
    assert_eq!(broker.first_copies("a"), payloads("a", 1..4));
    table.retry(moved);
    until("everything", || table.receipts().len() == 6 && table.held().is_empty()).await;
    let elsewhere: Vec<_> = broker.log().into_iter().filter(|record| record.topic == "payments").collect();
    let payloads: Vec<_> = elsewhere.iter().filter_map(|record| record.payload.as_deref()).collect();
    assert_eq!(payloads, ["a0", "a10", "a11"]);
    relay.drained().await;
}
