//! Purge deletes what was delivered long ago, and nothing else.

use std::time::Duration;

use outboxd_core::HoldState::{Behind, Parked, Retry};
use outboxd_engine::{Outbox, PurgeLimit, Purged, Upkeep};

use super::{Harness, Holding, Intent, dispatching, leading, messages, read, read_all, seqs};

const DAY: Duration = Duration::from_secs(24 * 3_600);

fn limit(rows: u32) -> PurgeLimit {
    PurgeLimit { keep_messages: 7 * DAY, keep_receipts: 30 * DAY, rows }
}

/// Steps until there is nothing more to do. Returns what each deleted.
async fn steps<O: Outbox>(relay: &O, rows: u32) -> Vec<Purged> {
    let mut steps: Vec<Purged> = Vec::new();
    while steps.last().is_none_or(|last| last.more) {
        steps.push(relay.purge(limit(rows)).await.expect("purge"));
        assert!(steps.len() < 100, "it never ends: {steps:?}");
    }
    steps
}

/// How many intents all steps together delete.
async fn purged<O: Outbox>(relay: &O, rows: u32) -> u64 {
    steps(relay, rows).await.iter().map(|step| step.messages).sum()
}

/// Intents first, receipts when they are old enough too.
pub async fn purge_deletes_what_is_dispatched_and_old<H: Harness>(harness: &H) {
    let (relay, term, start) = leading(harness).await;
    let old = harness.commit(&Intent::several(3)).await;
    harness.age(8 * DAY).await;
    let young = harness.commit(&Intent::several(2)).await;
    let page = read(&relay, &start.cursor, messages(10)).await.page;
    relay.settle(dispatching(term, &start.cursor, &page)).await.expect("settle");

    let purged = relay.purge(limit(100)).await.expect("purge");
    assert_eq!(purged, Purged { messages: 3, receipts: 0, more: false });
    assert_eq!(harness.intents().await, young);
    assert_eq!(harness.receipts().await.len(), 5, "{old:?} can still be found in Kafka");

    harness.age(31 * DAY).await;
    let purged = relay.purge(limit(100)).await.expect("purge");
    assert_eq!(purged.messages, 2);
    assert!(purged.receipts > 0);
    assert_eq!(harness.receipts().await, []);
}

/// However old it is.
pub async fn purge_never_deletes_what_is_undelivered<H: Harness>(harness: &H) {
    let (relay, term, start) = leading(harness).await;
    let written = harness.commit(&Intent::several(4)).await;
    harness.age(1_000 * DAY).await;
    assert_eq!(purged(&relay, 100).await, 0);
    let page = read(&relay, &start.cursor, messages(2)).await.page;
    assert_eq!(purged(&relay, 100).await, 0, "read is not dispatched");
    relay.settle(dispatching(term, &start.cursor, &page)).await.expect("settle");
    assert_eq!(purged(&relay, 100).await, 2);
    assert_eq!(harness.intents().await, written[2..]);
}

/// Its payload is needed yet.
pub async fn purge_never_deletes_what_is_held<H: Harness>(harness: &H) {
    let holding = Holding::new(
        harness,
        &[("orders", "a", Parked, 3), ("orders", "a", Behind, 0), ("orders", "b", Retry, 1)],
    )
    .await;
    harness.age(1_000 * DAY).await;
    assert_eq!(purged(&holding.relay, 1).await, 0);
    assert_eq!(harness.intents().await, seqs(&holding.messages));
    holding.settle(Vec::new(), vec![holding.messages[2].seq]).await;
    assert_eq!(purged(&holding.relay, 1).await, 1, "behind what is held");
    assert_eq!(harness.intents().await, seqs(&holding.messages[..2]));
}

/// It is below the cursor and was not dispatched.
pub async fn purge_never_deletes_a_late_message_below_the_cursor<H: Harness>(harness: &H) {
    let Some((open, late)) = harness.open(&Intent::several(1)).await else { return };
    let overtaking = harness.commit(&Intent::several(2)).await;
    let (relay, term, start) = leading(harness).await;
    let page = read(&relay, &start.cursor, messages(10)).await.page;
    let settled = page.cursor_after();
    relay.settle(dispatching(term, &start.cursor, &page)).await.expect("settle");
    harness.commit_open(open).await;
    harness.age(1_000 * DAY).await;
    assert_eq!(purged(&relay, 100).await, 2, "{overtaking:?}");
    assert_eq!(harness.intents().await, late);
    let page = read(&relay, &settled, messages(10)).await.page;
    assert_eq!(seqs(&page.messages), late);
}

/// So that nobody waits for it.
pub async fn purge_goes_in_small_steps<H: Harness>(harness: &H) {
    let (relay, term, start) = leading(harness).await;
    harness.commit(&Intent::several(5)).await;
    let page = read(&relay, &start.cursor, messages(10)).await.page;
    relay.settle(dispatching(term, &start.cursor, &page)).await.expect("settle");
    harness.age(8 * DAY).await;
    let steps = steps(&relay, 2).await;
    assert!(steps.len() >= 3 && steps.iter().all(|step| step.messages <= 2), "{steps:?}");
    assert_eq!(steps.iter().map(|step| step.messages).sum::<u64>(), 5);
    assert_eq!(harness.intents().await, []);
}

/// Places are never drawn again.
pub async fn new_messages_are_read_after_everything_was_purged<H: Harness>(harness: &H) {
    let (relay, term, start) = leading(harness).await;
    harness.commit(&Intent::several(3)).await;
    let page = read(&relay, &start.cursor, messages(10)).await.page;
    relay.settle(dispatching(term, &start.cursor, &page)).await.expect("settle");
    harness.age(8 * DAY).await;
    assert_eq!(purged(&relay, 100).await, 3);
    relay.step_down().await;

    let written = harness.commit(&Intent::several(2)).await;
    assert!(written[0] > page.messages[2].seq, "{written:?} after {:?}", seqs(&page.messages));
    let (relay, _, start) = leading(harness).await;
    let (read, _) = read_all(&relay, &start.cursor, messages(10)).await;
    assert_eq!(seqs(&read), written);
}
