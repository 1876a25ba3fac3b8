//! The sweep finds what the cursor has passed and nobody has delivered, and nothing else.

use std::time::Duration;

use outboxd_core::HoldState::{Behind, Parked, Retry};
use outboxd_core::{HoldReason, Routes, Seq};
use outboxd_engine::{
    Outbox, OutboxError, PurgeLimit, Release, ReleaseQuery, Settlement, Swept, Term, Upkeep,
};

use super::{
    Harness, Holding, Intent, dispatching, hold, leading, messages, moving, read, read_all, receipts, seqs,
};

const DAY: Duration = Duration::from_secs(24 * 3_600);

/// A whole lap, in turns of so many messages.
async fn lap<O: Upkeep>(relay: &O, term: Term, rows: u32) -> Vec<Swept> {
    let mut turns: Vec<Swept> = Vec::new();
    while turns.last().is_none_or(|turn| !turn.lap_ended) {
        turns.push(relay.sweep(term, rows, &Routes::default()).await.expect("sweep"));
        assert!(turns.len() < 100, "it never ends: {turns:?}");
    }
    turns
}

/// What a whole lap finds.
async fn found<O: Upkeep>(relay: &O, term: Term) -> Vec<Seq> {
    lap(relay, term, 3).await.into_iter().flat_map(|turn| turn.stranded).map(|found| found.seq).collect()
}

/// Dispatched, held, discarded, late, read and not settled, written and not read.
pub async fn a_sweep_finds_nothing_where_every_message_has_its_verdict<H: Harness>(harness: &H) {
    let (relay, term, start) = leading(harness).await;
    let open = harness.open(&Intent::several(2)).await;
    harness.commit(&Intent::several(8)).await;
    let page = read(&relay, &start.cursor, messages(100)).await.page;
    let mut settlement = dispatching(term, &start.cursor, &page);
    settlement.holds = vec![hold(&page.messages[2], Parked, 3), hold(&page.messages[5], Parked, 1)];
    let held = seqs(&[page.messages[2].clone(), page.messages[5].clone()]);
    settlement.receipts.retain(|entry| !held.contains(&entry.seq));
    let settled = settlement.after.clone();
    relay.settle(settlement).await.expect("settle");
    harness.discard(held[0]).await;
    assert_eq!(found(&relay, term).await, [], "dispatched, held and discarded");
    if let Some((open, _)) = open {
        harness.commit_open(open).await;
        assert_eq!(found(&relay, term).await, [], "late ones are below the cursor and were not seen by it");
    }
    harness.commit(&Intent::several(4)).await;
    let page = read(&relay, &settled, messages(3)).await.page;
    assert_eq!(found(&relay, term).await, [], "above the cursor");
    relay.settle(dispatching(term, &settled, &page)).await.expect("settle");
    assert_eq!(found(&relay, term).await, [], "late ones were dispatched");
    assert_eq!(harness.held().await.len(), 1);
}

/// Out of order, some of them far apart.
pub async fn receipts_of_released_messages_count<H: Harness>(harness: &H) {
    let holding = Holding::new(
        harness,
        &[("orders", "a", Retry, 0), ("orders", "b", Retry, 0), ("orders", "c", Retry, 0)],
    )
    .await;
    harness.commit(&Intent::several(5_000)).await;
    let (read, after) = read_all(&holding.relay, &holding.cursor, messages(5_000)).await;
    let both = [holding.messages[0].clone(), holding.messages[2].clone(), read[4_999].clone()];
    let in_order = receipts(&read[..4_999]);
    holding
        .relay
        .settle(Settlement {
            receipts: in_order,
            receipts_out_of_order: receipts(&both),
            released: seqs(&both),
            ..moving(holding.term, &holding.cursor, &after)
        })
        .await
        .expect("settle");
    let turns = lap(&holding.relay, holding.term, 700).await;
    assert_eq!(turns.iter().map(|turn| turn.compared).sum::<u64>(), 5_003);
    assert!(turns.iter().all(|turn| turn.stranded.is_empty()), "{turns:?}");
}

/// It is held as an operator's retry is, so the loop counts its key again and publishes it.
pub async fn a_message_that_the_cursor_passed_without_a_verdict_is_held_and_due<H: Harness>(harness: &H) {
    let (relay, term, start) = leading(harness).await;
    harness.commit(&Intent::several(3)).await;
    let page = read(&relay, &start.cursor, messages(100)).await.page;
    relay.settle(dispatching(term, &start.cursor, &page)).await.expect("settle");
    let settled = page.cursor_after();
    harness.commit(&[Intent::keyed("orders", "a", "stranded"), Intent::keyed("orders", "b", "fine")]).await;
    let page = read(&relay, &settled, messages(100)).await.page;
    let mut settlement = dispatching(term, &settled, &page);
    settlement.receipts.remove(0);
    relay.settle(settlement).await.expect("settle");
    let stranded = page.messages[0].seq;
    let before = relay.held(&[]).await.expect("ask").actions;

    let turns = lap(&relay, term, 3).await;
    let found: Vec<_> = turns.into_iter().flat_map(|turn| turn.stranded).collect();
    assert_eq!(found.iter().map(|found| found.seq).collect::<Vec<_>>(), [stranded]);
    assert_eq!(found[0].id, page.messages[0].id);
    assert_eq!(harness.held().await, [(stranded, Retry, HoldReason::Stranded, 0)]);
    let signal = relay.held(&[]).await.expect("ask");
    assert!(signal.due && signal.actions != before, "{signal:?}");
    let query = ReleaseQuery { term, topics_held: Vec::new(), unblocked: Vec::new(), limit: messages(10) };
    let Release { due, change, .. } = relay.due(&query, before).await.expect("due");
    assert_eq!(due.len(), 1);
    assert_eq!(due[0].message.payload.as_deref(), Some(b"stranded".as_slice()));
    assert_eq!(change.expect("the keys are counted again").held.len(), 1);
    assert_eq!(self::found(&relay, term).await, [], "it is held");
}

/// A lap ends at the cursor and begins again at the first message.
pub async fn a_sweep_goes_in_small_turns_and_begins_again<H: Harness>(harness: &H) {
    let (relay, term, start) = leading(harness).await;
    harness.commit(&Intent::several(7)).await;
    let page = read(&relay, &start.cursor, messages(100)).await.page;
    relay.settle(dispatching(term, &start.cursor, &page)).await.expect("settle");
    harness.commit(&Intent::several(3)).await;
    for _ in 0..2 {
        let turns = lap(&relay, term, 3).await;
        assert!(turns.iter().all(|turn| turn.compared <= 3), "{turns:?}");
        assert_eq!(turns.iter().map(|turn| turn.compared).sum::<u64>(), 7);
        assert_eq!(turns.last().expect("one at least").lap_age, Duration::ZERO);
    }
    relay.step_down().await;
    let (relay, term, _) = leading(harness).await;
    assert_eq!(relay.sweep(term, 100, &Routes::default()).await.expect("sweep").compared, 7);
}

/// Two leaders would hold a message twice.
pub async fn a_fenced_term_cannot_sweep<H: Harness>(harness: &H) {
    let (relay, term, start) = leading(harness).await;
    harness.commit(&Intent::several(3)).await;
    let page = read(&relay, &start.cursor, messages(100)).await.page;
    let mut settlement = dispatching(term, &start.cursor, &page);
    settlement.receipts.truncate(1);
    relay.settle(settlement).await.expect("settle");
    harness.fence().await;
    let refused = relay.sweep(term, 100, &Routes::default()).await;
    assert!(matches!(refused, Err(OutboxError::Fenced)), "{refused:?}");
    assert_eq!(harness.held().await, []);
}

/// What was settled so long ago cannot be told from what never was.
pub async fn messages_whose_receipts_may_be_purged_are_passed_over<H: Harness>(harness: &H) {
    let (relay, term, start) = leading(harness).await;
    harness.commit(&Intent::several(3)).await;
    let page = read(&relay, &start.cursor, messages(100)).await.page;
    relay.settle(dispatching(term, &start.cursor, &page)).await.expect("settle");
    let settled = page.cursor_after();
    harness.age(2 * DAY).await;
    harness.commit(&Intent::several(3)).await;
    let page = read(&relay, &settled, messages(100)).await.page;
    let mut settlement = dispatching(term, &settled, &page);
    settlement.holds = vec![hold(&page.messages[1], Behind, 0)];
    settlement.receipts.remove(1);
    relay.settle(settlement).await.expect("settle");
    let limit = PurgeLimit { keep_messages: 1_000 * DAY, keep_receipts: DAY, rows: 100 };
    assert!(relay.purge(limit).await.expect("purge").receipts > 0);
    assert_eq!(found(&relay, term).await, []);
    assert_eq!(harness.intents().await.len(), 6);
}

/// The first relay that reaches one writes it down.
pub async fn the_kafka_cluster_is_remembered_once<H: Harness>(harness: &H) {
    let (relay, term, start) = leading(harness).await;
    assert_eq!(start.kafka_cluster, None);
    relay.remember_kafka(term, "first").await.expect("remember");
    relay.remember_kafka(term, "second").await.expect("remember");
    relay.step_down().await;
    let (relay, term, start) = leading(harness).await;
    assert_eq!(start.kafka_cluster.as_deref(), Some("first"));
    harness.fence().await;
    let refused = relay.remember_kafka(term, "third").await;
    assert!(matches!(refused, Err(OutboxError::Fenced)), "{refused:?}");
}
