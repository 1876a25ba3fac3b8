//! The cursor, the receipts and the holds move together or not at all.

use outboxd_core::HoldState;
use outboxd_engine::{Outbox, OutboxError, Settlement};

use super::{
    Harness, Holding, Intent, dispatching, hold, leading, messages, moving, read, read_all, receipts, seqs,
};

/// What was acknowledged is behind the cursor, and its place in Kafka can be found.
pub async fn settling_moves_the_cursor_and_stores_the_receipts<H: Harness>(harness: &H) {
    harness.commit(&Intent::several(3)).await;
    let (relay, term, start) = leading(harness).await;
    let page = read(&relay, &start.cursor, messages(10)).await.page;
    relay.settle(dispatching(term, &start.cursor, &page)).await.expect("settle");
    assert_eq!(harness.cursor().await, page.cursor_after());
    assert_eq!(harness.receipts().await, receipts(&page.messages));
    assert_eq!(harness.held().await, []);
    let start = relay.start(term).await.expect("start");
    assert_eq!(start.cursor, page.cursor_after());
    assert!(read(&relay, &start.cursor, messages(10)).await.page.messages.is_empty());
}

/// The cursor may stop inside a page, and the rest of the page comes again.
pub async fn settling_inside_a_page_resumes_exactly_there<H: Harness>(harness: &H) {
    let written = harness.commit(&Intent::several(5)).await;
    let (relay, term, start) = leading(harness).await;
    let page = read(&relay, &start.cursor, messages(10)).await.page;
    let (frame, read_messages) = page.into_parts();
    let after = frame.cursor_after(2);
    let settlement =
        Settlement { receipts: receipts(&read_messages[..2]), ..moving(term, &start.cursor, &after) };
    relay.settle(settlement).await.expect("settle inside the page");

    let start = relay.start(term).await.expect("start");
    assert_eq!(start.cursor, after);
    let (rest, _) = read_all(&relay, &start.cursor, messages(10)).await;
    assert_eq!(seqs(&rest), written[2..]);
    relay.step_down().await;
    let (relay, _, start) = leading(harness).await;
    let (rest, _) = read_all(&relay, &start.cursor, messages(2)).await;
    assert_eq!(seqs(&rest), written[2..], "also for the next leader");
}

/// Whoever believes in a cursor that is not the stored one knows nothing that may be stored.
pub async fn settling_from_another_cursor_is_refused_and_stores_nothing<H: Harness>(harness: &H) {
    harness.commit(&Intent::several(4)).await;
    let (relay, term, start) = leading(harness).await;
    let first = read(&relay, &start.cursor, messages(2)).await.page;
    let second = read(&relay, &first.cursor_after(), messages(2)).await.page;
    let mut skipping = dispatching(term, &first.cursor_after(), &second);
    skipping.holds.push(hold(&second.messages[1], HoldState::Parked, 1));
    let refused = relay.settle(skipping).await;
    assert!(matches!(refused, Err(OutboxError::Fenced)), "{refused:?}");
    assert_eq!(harness.cursor().await, start.cursor);
    assert_eq!(harness.receipts().await, []);
    assert_eq!(harness.held().await, []);
}

/// A held message that is acknowledged at last lies below the cursor.
pub async fn receipts_of_released_messages_are_stored_without_moving_the_cursor<H: Harness>(harness: &H) {
    let holding = Holding::new(harness, &[("orders", "a", HoldState::Retry, 1)]).await;
    let settlement = Settlement {
        receipts_out_of_order: receipts(&holding.messages),
        released: vec![holding.messages[0].seq],
        ..moving(holding.term, &holding.cursor, &holding.cursor)
    };
    holding.relay.settle(settlement).await.expect("settle");
    assert_eq!(harness.cursor().await, holding.cursor);
    assert_eq!(harness.receipts().await, receipts(&holding.messages));
    assert_eq!(harness.held().await, []);
}

/// Each settlement begins where the one before ended.
pub async fn settlements_follow_one_another<H: Harness>(harness: &H) {
    let written = harness.commit(&Intent::several(9)).await;
    let (relay, term, start) = leading(harness).await;
    let mut settled = start.cursor;
    let mut all = Vec::new();
    for _ in 0..3 {
        let page = read(&relay, &settled, messages(3)).await.page;
        relay.settle(dispatching(term, &settled, &page)).await.expect("settle");
        relay.keep(term).await.expect("keep");
        settled = page.cursor_after();
        all.extend(page.messages);
    }
    assert_eq!(seqs(&all), written);
    assert_eq!(harness.receipts().await, receipts(&all));
    assert_eq!(harness.cursor().await, settled);
}
