//! The backlog, from the table.

use std::time::Duration;

use outboxd_core::HoldState::{Behind, Parked};
use outboxd_engine::{Outbox, Upkeep};

use super::{Harness, Holding, Intent, dispatching, leading, messages, read};

const HOUR: Duration = Duration::from_secs(3_600);

/// Held messages are counted by state and reason instead.
pub async fn the_backlog_is_what_is_neither_dispatched_nor_held<H: Harness>(harness: &H) {
    let holding = Holding::new(harness, &[("orders", "a", Parked, 3), ("orders", "a", Behind, 0)]).await;
    harness.commit(&Intent::several(5)).await;
    harness.roll_back(&Intent::several(5)).await;
    let backlog = holding.relay.backlog().await.expect("measure");
    assert_eq!(backlog.messages, 5);
    let mut held = backlog.held;
    held.sort();
    assert_eq!(held, [("behind".into(), "behind".into(), 1), ("parked".into(), "invalid_record".into(), 1)]);

    let page = read(&holding.relay, &holding.cursor, messages(3)).await.page;
    holding.relay.settle(dispatching(holding.term, &holding.cursor, &page)).await.expect("settle");
    assert_eq!(holding.relay.backlog().await.expect("measure").messages, 2);
}

/// And young again once that one is dispatched.
pub async fn the_backlog_is_as_old_as_its_oldest_message<H: Harness>(harness: &H) {
    let (relay, term, start) = leading(harness).await;
    assert_eq!(relay.backlog().await.expect("measure").oldest_age, Duration::ZERO);
    harness.commit(&Intent::several(1)).await;
    harness.age(2 * HOUR).await;
    harness.commit(&Intent::several(1)).await;
    let age = relay.backlog().await.expect("measure").oldest_age;
    assert!(age >= 2 * HOUR && age < 3 * HOUR, "{age:?}");
    let page = read(&relay, &start.cursor, messages(1)).await.page;
    relay.settle(dispatching(term, &start.cursor, &page)).await.expect("settle");
    let backlog = relay.backlog().await.expect("measure");
    assert!(backlog.oldest_age < HOUR && backlog.messages == 1, "{backlog:?}");
}

/// A parked message is not delivered, however long nobody looks.
pub async fn a_held_message_keeps_the_backlog_old<H: Harness>(harness: &H) {
    let holding = Holding::new(harness, &[("orders", "a", Parked, 3)]).await;
    harness.age(2 * HOUR).await;
    let backlog = holding.relay.backlog().await.expect("measure");
    assert_eq!(backlog.messages, 0);
    assert!(backlog.oldest_age >= 2 * HOUR, "{backlog:?}");
    harness.discard(holding.messages[0].seq).await;
    let backlog = holding.relay.backlog().await.expect("measure");
    assert_eq!((backlog.oldest_age, backlog.held.len()), (Duration::ZERO, 0));
}

/// Without leading.
pub async fn a_standby_can_measure_the_backlog<H: Harness>(harness: &H) {
    harness.commit(&Intent::several(3)).await;
    let _leader = leading(harness).await;
    let standby = harness.relay();
    assert_eq!(standby.lead().await.expect("ask for the lead"), None);
    assert_eq!(standby.backlog().await.expect("measure").messages, 3);
}
