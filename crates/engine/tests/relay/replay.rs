//! Replays beside the live messages.

use std::time::Duration;

use outboxd_core::{Fault, Seq};
use outboxd_engine::ReplayState;
use outboxd_testkit::scripted::{Delivered, MemoryTable, ScriptedBroker, Written};
use tokio::time::Instant;

use super::{Running, config, numbered, payloads, until};

/// A table with so many dispatched messages of key "a", and the relay that has dispatched them.
async fn dispatched(messages: u32) -> (MemoryTable, ScriptedBroker, Running) {
    let (table, broker) = (MemoryTable::default(), ScriptedBroker::with_topics(&["orders"]));
    table.commit(&numbered("orders", "a", 0..messages));
    let relay = Running::start(&table, &broker);
    until("they are dispatched", || table.receipts().len() == messages as usize).await;
    (table, broker, relay)
}

/// The payloads of the copies of a replay, in the order in which they were written.
fn copies(broker: &ScriptedBroker, replay: i64) -> Vec<String> {
    let number = replay.to_string();
    let of = |record: &Delivered| record.replay.as_ref() == Some(&number);
    broker.log().into_iter().filter(of).filter_map(|record| record.payload).collect()
}

/// Repeated ones left out.
fn first_copies(broker: &ScriptedBroker, replay: i64) -> Vec<String> {
    let mut seen: Vec<String> = Vec::new();
    for payload in copies(broker, replay) {
        if !seen.contains(&payload) {
            seen.push(payload);
        }
    }
    seen
}

async fn state(table: &MemoryTable, replay: i64, state: ReplayState) {
    until("the replay is there", || table.replay_of(replay).state == state).await;
}

/// Order per key among the copies, each with its header, a receipt for each, and nothing of the messages themselves is touched.
#[tokio::test(start_paused = true)]
async fn a_replay_publishes_what_was_dispatched_again_in_order() {
    let (table, broker, relay) = dispatched(57).await;
    let (cursor, receipts) = (table.cursor(), table.receipts());
    let replay = table.replay(None, None, None);
    state(&table, replay, ReplayState::Done).await;
    assert_eq!(copies(&broker, replay), payloads("a", 0..57));
    assert_eq!(broker.log().len(), 2 * 57);
    assert_eq!(table.replayed(), table.intents(), "a receipt for each copy");
    assert_eq!(table.replay_of(replay).published, 57);
    assert_eq!((table.cursor(), table.receipts()), (cursor, receipts));
    // Nobody waits behind it.
    table.commit(&numbered("orders", "a", 57..60));
    until("newer ones", || table.receipts().len() == 60).await;
    assert!(table.held().is_empty());
    let counts = relay.drained().await;
    assert_eq!((counts.replayed, counts.duplicates), (57, 0));
}

/// What is held has yet to be published for the first time; what was discarded never is.
#[tokio::test(start_paused = true)]
async fn a_replay_leaves_out_what_was_not_dispatched() {
    let (table, broker) = (MemoryTable::default(), ScriptedBroker::with_topics(&["orders"]));
    broker.refuse("b0", Fault::InvalidRecord, u32::MAX);
    broker.refuse("c0", Fault::InvalidRecord, u32::MAX);
    for key in ["a", "b", "c"] {
        table.commit(&numbered("orders", key, 0..1));
    }
    let relay = Running::start(&table, &broker);
    until("two are parked", || table.held().len() == 2 && table.receipts().len() == 1).await;
    table.discard(Seq(3));
    let replay = table.replay(None, None, None);
    table.commit(&numbered("orders", "a", 1..3));
    state(&table, replay, ReplayState::Done).await;
    assert_eq!(copies(&broker, replay), ["a0"]);
    relay.drained().await;
}

/// One at a time, the oldest first.
#[tokio::test(start_paused = true)]
async fn two_replays_come_one_after_the_other() {
    let (table, broker, relay) = dispatched(30).await;
    let (first, second) = (table.replay(None, None, Some(100)), table.replay(Some("a"), None, None));
    state(&table, second, ReplayState::Done).await;
    assert_eq!(table.replay_of(first).state, ReplayState::Done);
    let replays: Vec<String> = broker.log().into_iter().filter_map(|record| record.replay).collect();
    assert_eq!(replays, [vec!["1".to_owned(); 30], vec!["2".to_owned(); 30]].concat());
    relay.drained().await;
}

#[tokio::test(start_paused = true)]
async fn a_replay_keeps_to_its_rate() {
    let (table, broker, relay) = dispatched(60).await;
    let replay = table.replay(None, None, Some(10));
    until("it has begun", || !copies(&broker, replay).is_empty()).await;
    let began = Instant::now();
    state(&table, replay, ReplayState::Done).await;
    let took = began.elapsed().as_secs_f64();
    assert!((5.0..8.0).contains(&took), "60 messages at 10 a second took {took} s");
    assert_eq!(copies(&broker, replay), payloads("a", 0..60));
    relay.drained().await;
}

#[tokio::test(start_paused = true)]
async fn a_replay_that_is_paused_rests_and_goes_on_where_it_was() {
    let (table, broker, relay) = dispatched(100).await;
    let replay = table.replay(None, None, Some(20));
    until("it has begun", || copies(&broker, replay).len() > 10).await;
    table.set_replay(replay, ReplayState::Paused);
    tokio::time::sleep(Duration::from_secs(5)).await;
    let resting = copies(&broker, replay).len();
    assert!(resting < 100);
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(copies(&broker, replay).len(), resting);
    assert_eq!(table.replay_of(replay).published, resting as u64, "what was published is written down");
    table.set_replay(replay, ReplayState::Running);
    state(&table, replay, ReplayState::Done).await;
    assert_eq!(copies(&broker, replay), payloads("a", 0..100));
    relay.drained().await;
}

#[tokio::test(start_paused = true)]
async fn a_replay_that_is_cancelled_ends_and_the_next_one_begins() {
    let (table, broker, relay) = dispatched(100).await;
    let replay = table.replay(None, None, Some(20));
    let next = table.replay(None, None, None);
    until("it has begun", || copies(&broker, replay).len() > 10).await;
    table.set_replay(replay, ReplayState::Cancelled);
    state(&table, next, ReplayState::Done).await;
    assert_eq!(table.replay_of(replay).state, ReplayState::Cancelled);
    assert!(copies(&broker, replay).len() < 100);
    assert_eq!(copies(&broker, next), payloads("a", 0..100));
    relay.drained().await;
}

/// The topic that an operator names, by its full name; the partition that an intent names means nothing there.
#[tokio::test(start_paused = true)]
async fn copies_can_be_sent_elsewhere() {
    let (table, broker, relay) = dispatched(5).await;
    broker.create_topic("backfill");
    let replay = table.replay(None, Some("backfill"), None);
    state(&table, replay, ReplayState::Done).await;
    assert_eq!(broker.payloads("backfill"), payloads("a", 0..5));
    assert_eq!(broker.payloads("orders").len(), 5);
    relay.drained().await;
}

/// Nothing is left out in silence, and nothing else is kept waiting.
#[tokio::test(start_paused = true)]
async fn a_replay_to_a_topic_that_does_not_exist_is_stopped_and_can_be_resumed() {
    let (table, broker, relay) = dispatched(5).await;
    let replay = table.replay(None, Some("missing"), None);
    state(&table, replay, ReplayState::Stopped).await;
    let stop = table.replay_of(replay).stop.unwrap();
    assert_eq!((stop.seq, stop.error.as_str()), (Seq(1), "topic missing: topic_unknown"));
    table.commit(&numbered("orders", "a", 5..8));
    until("live messages go on", || table.receipts().len() == 8).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    // At once: what was answered last is that there is none.
    broker.create_topic("missing");
    assert!(broker.payloads("missing").is_empty(), "it waits for an operator");
    table.set_replay(replay, ReplayState::Running);
    state(&table, replay, ReplayState::Done).await;
    assert_eq!(broker.payloads("missing"), payloads("a", 0..5));
    assert_eq!(relay.drained().await.outages, 0);
}

/// Found by trying it with nothing else in flight; what was published before it is written down.
#[tokio::test(start_paused = true)]
async fn a_message_that_is_refused_for_its_own_sake_stops_its_replay_and_nothing_else() {
    let (table, broker, relay) = dispatched(40).await;
    broker.poison("a17");
    let replay = table.replay(None, None, None);
    state(&table, replay, ReplayState::Stopped).await;
    let found = table.replay_of(replay);
    assert_eq!(found.stop.unwrap().seq, Seq(18));
    assert_eq!((found.task.pos, found.published), (Seq(17), 17));
    assert_eq!(first_copies(&broker, replay)[..17], payloads("a", 0..17));
    table.commit(&numbered("orders", "b", 0..30));
    until("live messages go on", || table.receipts().len() == 70).await;
    let counts = relay.drained().await;
    assert_eq!((counts.parked, counts.outages), (0, 0));
}

/// D4. An outage costs a replay time, and what was not written down is published once more, in the same order.
#[tokio::test(start_paused = true)]
async fn a_replay_rides_an_outage_out_and_goes_on_from_what_was_written_down() {
    let (table, broker, relay) = dispatched(200).await;
    let replay = table.replay(None, None, Some(50));
    until("it has begun", || table.replay_of(replay).published > 20).await;
    broker.break_next_producer();
    until("the client is new", || broker.renewals() > 1).await;
    broker.silent(true);
    broker.unreachable(true);
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(table.replay_of(replay).state, ReplayState::Running);
    broker.unreachable(false);
    broker.silent(false);
    state(&table, replay, ReplayState::Done).await;
    assert_eq!(first_copies(&broker, replay), payloads("a", 0..200));
    assert!(copies(&broker, replay).len() < 400, "{} copies", copies(&broker, replay).len());
    assert!(table.held().is_empty());
    relay.drained().await;
}

#[tokio::test(start_paused = true)]
async fn a_lost_term_costs_a_replay_at_most_what_was_not_written_down() {
    let (table, broker, relay) = dispatched(200).await;
    let replay = table.replay(None, None, Some(50));
    until("it has begun", || table.replay_of(replay).published > 20).await;
    table.end_lead_session();
    until("another term", || relay.counts().terms == 2).await;
    state(&table, replay, ReplayState::Done).await;
    assert_eq!(first_copies(&broker, replay), payloads("a", 0..200));
    let again = copies(&broker, replay).len() - 200;
    assert!(again <= 100, "{again} copies again");
    relay.drained().await;
}

/// A topic without a leader keeps neither live messages nor the end of the relay waiting.
#[tokio::test(start_paused = true)]
async fn a_topic_that_never_acknowledges_stops_its_replay_alone() {
    let (table, broker, relay) = dispatched(20).await;
    broker.create_topic("silent");
    broker.silent_topic("silent", true);
    let replay = table.replay(None, Some("silent"), None);
    until("a message to be tried alone", || relay.counts().enqueued > 20).await;
    broker.refuse("b0", Fault::InvalidRecord, 1);
    table.commit(&numbered("orders", "b", 0..3));
    state(&table, replay, ReplayState::Stopped).await;
    assert!(table.replay_of(replay).stop.unwrap().error.contains("does not acknowledge"));
    until("live messages", || table.receipts().len() == 23).await;
    assert!(table.held().is_empty());
    relay.drained().await;
}

/// D4. Nor one that does not acknowledge because nobody does, although others did after it was handed over.
#[tokio::test(start_paused = true)]
async fn an_outage_stops_no_replay_however_shortly_before_it_kafka_answered() {
    let (table, broker, relay) = dispatched(3).await;
    broker.create_topic("slow");
    broker.silent_topic("slow", true);
    let replay = table.replay(None, Some("slow"), None);
    until("copies are with the client", || relay.counts().enqueued > 3).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    table.commit(&numbered("orders", "b", 0..1));
    until("others are acknowledged", || table.receipts().len() == 4).await;
    broker.silent(true);
    broker.unreachable(true);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(table.replay_of(replay).state, ReplayState::Running);
    broker.silent_topic("slow", false);
    broker.silent(false);
    broker.unreachable(false);
    state(&table, replay, ReplayState::Done).await;
    assert_eq!(broker.payloads("slow"), payloads("a", 0..3));
    relay.drained().await;
}

/// Live messages first: a copy is handed over only while none of them waits, and few of what is in flight are copies.
#[tokio::test(start_paused = true)]
async fn live_messages_keep_flowing_beside_a_replay() {
    let (table, broker, relay) = dispatched(1_000).await;
    let replay = table.replay(None, None, Some(1_000));
    until("it has begun", || !copies(&broker, replay).is_empty()).await;
    table.commit(&numbered("orders", "b", 0..300));
    until("live messages", || broker.first_copies("b").len() == 300).await;
    assert_eq!(table.replay_of(replay).state, ReplayState::Running);
    assert!(copies(&broker, replay).len() < 500);
    state(&table, replay, ReplayState::Done).await;
    assert_eq!(copies(&broker, replay), payloads("a", 0..1_000));
    relay.drained().await;
}

#[tokio::test(start_paused = true)]
async fn few_of_what_is_in_flight_are_copies() {
    let (table, broker, relay) = dispatched(100).await;
    broker.silent(true);
    let replay = table.replay(None, None, None);
    until("it has begun", || relay.counts().enqueued > 100).await;
    table.commit(&numbered("orders", "b", 0..50));
    until("live messages are with the client", || relay.counts().enqueued > 150).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let copies_in_flight = relay.counts().enqueued - 150;
    assert!((1..=100 / 16).contains(&copies_in_flight), "{copies_in_flight} copies in flight");
    broker.silent(false);
    state(&table, replay, ReplayState::Done).await;
    assert_eq!(copies(&broker, replay), payloads("a", 0..100));
    relay.drained().await;
}

/// An orderly end writes down what was published, so that nothing comes again.
#[tokio::test(start_paused = true)]
async fn a_relay_that_is_drained_in_the_middle_of_a_replay_repeats_nothing() {
    let (table, broker, relay) = dispatched(200).await;
    let replay = table.replay(None, None, Some(50));
    until("it has begun", || copies(&broker, replay).len() > 30).await;
    relay.drained().await;
    let published = copies(&broker, replay).len();
    assert!(published < 200);
    assert_eq!(table.replay_of(replay).published, published as u64);
    let relay = Running::start_with(&table, &broker, config());
    state(&table, replay, ReplayState::Done).await;
    assert_eq!(copies(&broker, replay), payloads("a", 0..200));
    relay.drained().await;
}

/// The rows behind a cursor that nothing has read yet are not there for a replay, whatever their place.
#[tokio::test(start_paused = true)]
async fn a_late_message_is_replayed_only_once_it_was_dispatched() {
    let (table, broker) = (MemoryTable::default(), ScriptedBroker::with_topics(&["orders"]));
    let late = table.draw(1);
    table.commit(&numbered("orders", "a", 0..3));
    let relay = Running::start(&table, &broker);
    until("dispatched", || table.receipts().len() == 3).await;
    let replay = table.replay(None, None, None);
    state(&table, replay, ReplayState::Done).await;
    table.commit_at(&late, &[Written::keyed("orders", "a", "late")]);
    until("the late one", || table.receipts().len() == 4).await;
    let again = table.replay(None, None, None);
    state(&table, again, ReplayState::Done).await;
    assert_eq!((copies(&broker, replay).len(), copies(&broker, again).len()), (3, 4));
    relay.drained().await;
}

/// It must not end every relay that comes after it, while live messages wait.
#[tokio::test(start_paused = true)]
async fn a_message_that_ends_the_relays_that_replay_it_stops_its_replay() {
    let (table, broker, relay) = dispatched(5).await;
    relay.drained().await;
    let replay = table.replay(None, None, None);
    broker.deadly("a3");
    for _ in 0..3 {
        let relay = Running::start(&table, &broker);
        assert!(relay.task.await.unwrap_err().is_panic());
        table.end_lead_session();
    }
    let relay = Running::start(&table, &broker);
    state(&table, replay, ReplayState::Stopped).await;
    assert!(table.replay_of(replay).stop.unwrap().error.starts_with("3 relays ended without a word"));
    table.commit(&numbered("orders", "b", 0..3));
    until("live messages go on", || table.receipts().len() == 8).await;
    assert!(table.held().is_empty());
    broker.harmless();
    table.set_replay(replay, ReplayState::Running);
    state(&table, replay, ReplayState::Done).await;
    assert_eq!(first_copies(&broker, replay), payloads("a", 0..5));
    relay.drained().await;
}

/// A table with a dispatched message each of these topics, in this order, and the relay that has dispatched them.
async fn dispatched_to(topics: &[&str]) -> (MemoryTable, ScriptedBroker, Running) {
    let (table, broker) = (MemoryTable::default(), ScriptedBroker::with_topics(topics));
    for topic in topics {
        table.commit(&numbered(topic, topic, 0..1));
    }
    let relay = Running::start(&table, &broker);
    until("they are dispatched", || table.receipts().len() == topics.len()).await;
    (table, broker, relay)
}

/// What it came to is written down once, and the relay goes on to the next one.
#[tokio::test(start_paused = true)]
async fn a_replay_that_rests_just_before_it_would_stop_is_left() {
    for rest in [ReplayState::Paused, ReplayState::Cancelled] {
        let (table, broker, relay) = dispatched_to(&["slow", "gone"]).await;
        broker.silent_topic("slow", true);
        broker.delete_topic("gone");
        let replay = table.replay(None, None, None);
        until("its copies are with the client", || relay.counts().enqueued > 2).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        table.set_replay(replay, rest);
        broker.silent_topic("slow", false);
        until("what was published is written down", || table.replay_of(replay).published == 1).await;
        broker.create_topic("gone");
        let next = table.replay(None, None, None);
        state(&table, next, ReplayState::Done).await;
        assert_eq!(table.replay_of(replay).state, rest);
        assert_eq!(copies(&broker, replay), ["slow0"]);
        relay.drained().await;
    }
}

/// Also if its copies are never acknowledged.
#[tokio::test(start_paused = true)]
async fn a_replay_that_rests_before_its_copies_are_overdue_is_left() {
    let (table, broker, relay) = dispatched(20).await;
    broker.create_topic("silent");
    broker.silent_topic("silent", true);
    let replay = table.replay(None, Some("silent"), None);
    until("copies are with the client", || relay.counts().enqueued > 20).await;
    table.set_replay(replay, ReplayState::Paused);
    let next = table.replay(None, None, None);
    state(&table, next, ReplayState::Done).await;
    assert_eq!(table.replay_of(replay).state, ReplayState::Paused);
    relay.drained().await;
}

/// Who resumes it without the message that stopped it leaves out that one and no other.
#[tokio::test(start_paused = true)]
async fn a_replay_stops_only_once_everything_before_is_published() {
    let (table, broker, relay) = dispatched_to(&["slow", "slower", "gone"]).await;
    broker.silent_topic("slow", true);
    broker.silent_topic("slower", true);
    broker.delete_topic("gone");
    let replay = table.replay(None, None, None);
    until("its copies are with the client", || relay.counts().enqueued > 3).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    broker.refuse("slow0", Fault::TooLarge, 1);
    broker.silent_topic("slow", false);
    broker.silent_topic("slower", false);
    state(&table, replay, ReplayState::Stopped).await;
    let found = table.replay_of(replay);
    assert_eq!((found.stop.unwrap().seq, found.task.pos, found.published), (Seq(3), Seq(2), 2));
    assert!(first_copies(&broker, replay).contains(&"slow0".to_owned()));
    relay.drained().await;
}

/// What was asked for before it was paused goes on behind copies that were never published.
#[tokio::test(start_paused = true)]
async fn a_replay_that_is_paused_and_resumed_during_a_question_leaves_nothing_out() {
    let (table, broker, relay) = dispatched(40).await;
    table.replay_takes(Duration::from_secs(4));
    let replay = table.replay(None, None, Some(1));
    until("the second question is on its way", || copies(&broker, replay).len() == 4).await;
    table.set_replay(replay, ReplayState::Paused);
    tokio::time::sleep(Duration::from_secs(2)).await;
    table.set_replay(replay, ReplayState::Running);
    state(&table, replay, ReplayState::Done).await;
    assert_eq!(first_copies(&broker, replay), payloads("a", 0..40));
    relay.drained().await;
}

/// Only copies of a replay are out.
#[tokio::test(start_paused = true)]
async fn copies_that_are_not_acknowledged_keep_neither_a_drain_nor_a_rewind_waiting() {
    let (table, broker, relay) = dispatched(20).await;
    broker.create_topic("silent");
    broker.silent_topic("silent", true);
    table.replay(None, Some("silent"), None);
    until("copies are with the client", || relay.counts().enqueued > 20).await;
    broker.refuse("b0", Fault::InvalidRecord, 1);
    table.commit(&numbered("orders", "b", 0..3));
    let began = Instant::now();
    until("live messages", || table.receipts().len() == 23).await;
    assert!(began.elapsed() < Duration::from_secs(3), "a rewind took {:?}", began.elapsed());
    let enqueued = relay.counts().enqueued;
    until("copies are with the client again", || relay.counts().enqueued > enqueued).await;
    let began = Instant::now();
    relay.drained().await;
    assert!(began.elapsed() < Duration::from_secs(3), "a drain took {:?}", began.elapsed());
}

/// The client is made anew for it, but not before it has answered for the others.
#[tokio::test(start_paused = true)]
async fn a_replay_that_is_given_up_repeats_no_live_message() {
    let (table, broker, relay) = dispatched(20).await;
    broker.create_topic("silent");
    broker.create_topic("slow");
    broker.silent_topic("silent", true);
    broker.silent_topic("slow", true);
    let replay = table.replay(None, Some("silent"), None);
    until("copies are with the client", || relay.counts().enqueued > 20).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    table.commit(&numbered("slow", "c", 0..1));
    tokio::time::sleep(Duration::from_secs(2)).await;
    table.commit(&numbered("orders", "b", 0..1));
    state(&table, replay, ReplayState::Stopped).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    broker.silent_topic("slow", false);
    until("live messages", || table.receipts().len() == 22).await;
    table.commit(&numbered("orders", "b", 1..3));
    until("newer ones", || table.receipts().len() == 24).await;
    let counts = relay.drained().await;
    assert_eq!((counts.duplicates, counts.outages), (0, 0));
    assert_eq!(broker.payloads("slow"), payloads("c", 0..1));
}

/// Nothing of it was published by the relays that ended.
#[tokio::test(start_paused = true)]
async fn relays_that_end_before_a_replay_has_its_turn_do_not_count_against_it() {
    let (table, broker, relay) = dispatched(5).await;
    relay.drained().await;
    let replay = table.replay(None, None, None);
    table.commit(&numbered("orders", "b", 0..3));
    broker.mute_look_ups(true);
    for _ in 0..4 {
        let relay = Running::start(&table, &broker);
        tokio::time::sleep(Duration::from_secs(10)).await;
        relay.task.abort();
        assert!(relay.task.await.unwrap_err().is_cancelled());
        table.end_lead_session();
    }
    broker.mute_look_ups(false);
    let relay = Running::start(&table, &broker);
    state(&table, replay, ReplayState::Done).await;
    assert_eq!(copies(&broker, replay), payloads("a", 0..5));
    relay.drained().await;
}
