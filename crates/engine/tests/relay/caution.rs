//! Processes that end without a word, and what the next ones make of it.

use std::time::Duration;

use outboxd_core::{HoldReason, HoldState, Route, Routes, TopicPattern};
use outboxd_engine::RelayConfig;
use outboxd_testkit::scripted::{MemoryTable, ScriptedBroker, Written};

use super::{Running, config, numbered, payloads, until};

/// Starts a relay again and again, as a supervisor does, until it lives to see the state. Returns it, and how many have ended.
async fn restarted_until(
    table: &MemoryTable,
    broker: &ScriptedBroker,
    what: &str,
    state: impl FnMut() -> bool,
) -> (Running, u32) {
    restarted_with(table, broker, config(), what, state).await
}

async fn restarted_with(
    table: &MemoryTable,
    broker: &ScriptedBroker,
    config: RelayConfig,
    what: &str,
    mut state: impl FnMut() -> bool,
) -> (Running, u32) {
    for ended in 0..20 {
        let relay = Running::start_with(table, broker, config.clone());
        until(what, || relay.task.is_finished() || state()).await;
        if !relay.task.is_finished() {
            return (relay, ended);
        }
        assert!(relay.task.await.unwrap_err().is_panic());
        table.end_lead_session();
    }
    panic!("20 relays ended before: {what}");
}

/// Starts a relay and ends it without a word after a moment.
async fn killed_after(table: &MemoryTable, broker: &ScriptedBroker, moment: Duration) {
    let relay = Running::start(table, broker);
    tokio::time::sleep(moment).await;
    relay.task.abort();
    assert!(relay.task.await.unwrap_err().is_cancelled());
    table.end_lead_session();
}

#[tokio::test(start_paused = true)]
async fn a_message_that_ends_the_process_is_parked_alone_and_all_others_arrive_in_order() {
    let (table, broker) = (MemoryTable::default(), ScriptedBroker::with_topics(&["orders"]));
    broker.deadly("a4");
    table.commit(&numbered("orders", "a", 0..8));
    table.commit(&numbered("orders", "b", 0..300));
    let (relay, ended) =
        restarted_until(&table, &broker, "the others", || table.receipts().len() == 4 + 300).await;
    assert!((2..=6).contains(&ended), "{ended}");
    let held = table.held();
    assert_eq!((held[0].state, held[0].reason), (HoldState::Parked, HoldReason::CrashesRelay));
    assert_eq!(held.len(), 4, "itself and the three behind it: {held:?}");
    assert!(held[1..].iter().all(|hold| hold.state == HoldState::Behind));
    assert_eq!(broker.first_copies("a"), payloads("a", 0..4));
    assert_eq!(broker.first_copies("b"), payloads("b", 0..300));
    assert_eq!(table.trial(), None);

    // Retried in vain, and once more when the cause is gone.
    table.retry(held[0].seq);
    until("it ends the process again", || relay.task.is_finished()).await;
    table.end_lead_session();
    let parked = || table.held().iter().any(|hold| hold.state == HoldState::Parked);
    let (relay, ended) = restarted_until(&table, &broker, "it is parked again", parked).await;
    assert!(ended <= 1, "it was noted at once, without further suspicion: {ended}");
    broker.harmless();
    table.commit(&numbered("orders", "a", 8..10));
    table.retry(table.held()[0].seq);
    until("everything", || table.receipts().len() == 310 && table.held().is_empty()).await;
    assert_eq!(broker.first_copies("a"), payloads("a", 0..10));
    relay.drained().await;
}

#[tokio::test(start_paused = true)]
async fn two_messages_that_end_the_process_are_both_found() {
    let (table, broker) = (MemoryTable::default(), ScriptedBroker::with_topics(&["orders"]));
    broker.deadly("a1");
    broker.deadly("b1");
    table.commit(&numbered("orders", "a", 0..3));
    table.commit(&numbered("orders", "b", 0..3));
    let (relay, ended) = restarted_until(&table, &broker, "the others", || {
        table.receipts().len() == 2 && table.held().len() == 4
    })
    .await;
    assert!(ended <= 8, "{ended}");
    let parked = table.held().iter().filter(|hold| hold.reason == HoldReason::CrashesRelay).count();
    assert_eq!(parked, 2);
    relay.drained().await;
}

#[tokio::test(start_paused = true)]
async fn a_held_message_that_ends_the_process_is_found_while_newer_messages_are_settled_each_time() {
    let (table, broker) = (MemoryTable::default(), ScriptedBroker::with_topics(&["orders"]));
    let relay = Running::start(&table, &broker);
    table.commit(&numbered("missing", "m", 0..3));
    until("3 held", || table.held().len() == 3).await;
    relay.drained().await;
    broker.deadly("m1");
    broker.create_topic("missing");
    let mut written = 0;
    let (relay, ended) = restarted_until(&table, &broker, "it is parked", || {
        // Somebody writes all the time, and each term settles some of it.
        table.commit(&numbered("orders", "a", written..written + 1));
        written += 1;
        table.held().iter().any(|hold| hold.reason == HoldReason::CrashesRelay)
    })
    .await;
    assert!(ended <= 8, "{ended}");
    until("m0 and all others", || broker.first_copies("m").len() == 1).await;
    until("all others", || broker.first_copies("a").len() == usize::try_from(written).unwrap()).await;
    assert_eq!(broker.first_copies("a"), payloads("a", 0..written));
    relay.drained().await;
}

#[tokio::test(start_paused = true)]
async fn kills_during_an_outage_are_never_held_against_a_message() {
    let (table, broker) = (MemoryTable::default(), ScriptedBroker::with_topics(&["orders"]));
    table.commit(&numbered("orders", "a", 0..20));
    // Looked up and not answered: what is handed over stays with the client.
    broker.silent(true);
    for _ in 0..10 {
        killed_after(&table, &broker, Duration::from_secs(3)).await;
    }
    broker.silent(false);
    broker.unreachable(true);
    for _ in 0..10 {
        killed_after(&table, &broker, Duration::from_millis(500)).await;
    }
    broker.unreachable(false);
    let relay = Running::start(&table, &broker);
    until("20 receipts", || table.receipts().len() == 20).await;
    assert!(table.held().is_empty());
    assert_eq!(broker.first_copies("a"), payloads("a", 0..20));
    relay.drained().await;
}

#[tokio::test(start_paused = true)]
async fn losing_the_database_with_an_attempt_noted_is_never_held_against_the_message() {
    let (table, broker) = (MemoryTable::default(), ScriptedBroker::with_topics(&["orders"]));
    table.commit(&numbered("orders", "a", 0..5));
    broker.silent(true);
    for _ in 0..4 {
        killed_after(&table, &broker, Duration::from_millis(500)).await;
    }
    let relay = Running::start(&table, &broker);
    until("two attempts are noted", || table.trial().is_some_and(|trial| trial.trials == 2)).await;
    table.available(false);
    tokio::time::sleep(Duration::from_secs(10)).await;
    table.available(true);
    until("the note is taken back", || table.trial().is_none()).await;
    broker.silent(false);
    until("5 receipts", || table.receipts().len() == 5).await;
    assert!(table.held().is_empty());
    relay.drained().await;
}

#[tokio::test(start_paused = true)]
async fn kills_of_an_idle_relay_cost_the_next_one_nothing() {
    let (table, broker) = (MemoryTable::default(), ScriptedBroker::with_topics(&["orders"]));
    for _ in 0..10 {
        killed_after(&table, &broker, Duration::from_secs(1)).await;
    }
    let relay = Running::start(&table, &broker);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let settles = table.settles();
    table.commit(&numbered("orders", "a", 0..100));
    until("100 receipts", || table.receipts().len() == 100).await;
    assert!(table.settles() - settles < 30, "{} settles: one message at a time", table.settles());
    assert!(broker.log().iter().filter(|record| record.alone).count() < 10);
    relay.drained().await;
}

#[tokio::test(start_paused = true)]
async fn a_message_that_ends_the_process_is_parked_without_a_copy_that_would_end_it_too() {
    let (table, broker) = (MemoryTable::default(), ScriptedBroker::with_topics(&["orders", "dead"]));
    broker.deadly("a1");
    table.commit(&numbered("orders", "a", 0..2));
    let all = || vec!["*".parse::<TopicPattern>().unwrap()];
    let route = Route { topics: all(), dead_letter: Some("dead".to_owned()), ..Route::default() };
    let config = RelayConfig { routes: Routes::new(all(), vec![route]), ..config() };
    let (relay, ended) =
        restarted_with(&table, &broker, config, "it is parked", || !table.held().is_empty()).await;
    assert!(ended <= 6, "{ended}");
    assert_eq!(table.held()[0].reason, HoldReason::CrashesRelay);
    assert!(broker.log().iter().all(|record| record.topic == "orders"));
    relay.drained().await;
}

#[tokio::test(start_paused = true)]
async fn a_copy_that_ends_the_process_is_given_up_and_its_message_parked() {
    let (table, broker) = (MemoryTable::default(), ScriptedBroker::with_topics(&["dead"]));
    let payload = "x".repeat(2_000);
    broker.limit_topic("orders", 1_000);
    broker.deadly(&payload);
    table.commit(&[Written::keyed("orders", "a", &payload)]);
    table.commit(&numbered("orders", "b", 0..50));
    let all = || vec!["*".parse::<TopicPattern>().unwrap()];
    let route = Route { topics: all(), dead_letter: Some("dead".to_owned()), ..Route::default() };
    let config = RelayConfig { routes: Routes::new(all(), vec![route]), ..config() };
    let (relay, ended) = restarted_with(&table, &broker, config, "everything is dealt with", || {
        table.undispatched() == 0 && table.held().len() == 1
    })
    .await;
    assert!(ended <= 6, "{ended}");
    let held = table.held();
    assert_eq!((held[0].reason, &held[0].dead_letter), (HoldReason::TooLarge, &None));
    assert_eq!(broker.first_copies("b"), payloads("b", 0..50), "nobody else was taken for it");
    until("the note is taken back", || table.trial().is_none()).await;
    relay.drained().await;
}
