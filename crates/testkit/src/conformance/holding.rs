//! Messages set aside: what is due, what waits behind what, and what operators change.

use std::time::Duration;

use outboxd_core::{HoldReason, HoldState};
use outboxd_engine::{HeldSignal, Outbox, PageLimit, ReleaseQuery};

use super::{Harness, Holding, Intent, hold, leading, messages, moving, read_all};

use HoldState::{Behind, Parked, Retry, Topic};

/// A key is busy while any message of it is held.
pub async fn a_hold_is_counted_for_its_key<H: Harness>(harness: &H) {
    let (relay, _, start) = leading(harness).await;
    assert_eq!(start.held, []);
    assert_eq!(relay.held(&[]).await.expect("look"), HeldSignal::default());
    relay.step_down().await;

    let holding = Holding::new(harness, &[("orders", "a", Parked, 3), ("orders", "a", Behind, 0)]).await;
    let stored = harness.held().await;
    let [head, follower] = [holding.messages[0].seq, holding.messages[1].seq];
    assert_eq!(
        stored,
        [(head, Parked, HoldReason::InvalidRecord, 3), (follower, Behind, HoldReason::Behind, 0)]
    );
    let signal = holding.relay.held(&[]).await.expect("look");
    assert_eq!((signal.messages, signal.due, signal.unblocked.len()), (2, false, 0));
    let start = holding.relay.start(holding.term).await.expect("start");
    assert_eq!(start.held.len(), 1);
    assert_eq!((start.held[0].key_hash, start.held[0].messages), (holding.key(0), 2));
}

/// A release that failed again replaces what was stored.
pub async fn a_hold_that_fails_again_is_updated<H: Harness>(harness: &H) {
    let holding = Holding::new(harness, &[("orders", "a", Retry, 1)]).await;
    holding.settle(vec![hold(&holding.messages[0], Retry, 2)], Vec::new()).await;
    assert_eq!(harness.held().await, [(holding.messages[0].seq, Retry, HoldReason::UnknownError, 2)]);
    assert_eq!(holding.due(&[], &[]).await, [0]);
    let parked =
        outboxd_core::Hold { reason: HoldReason::AttemptsExhausted, ..hold(&holding.messages[0], Parked, 3) };
    holding.settle(vec![parked], Vec::new()).await;
    assert_eq!(harness.held().await, [(holding.messages[0].seq, Parked, HoldReason::AttemptsExhausted, 3)]);
    assert_eq!(holding.due(&[], &[]).await, [0_usize; 0]);
}

/// Dispatched at last.
pub async fn a_released_message_is_held_no_longer<H: Harness>(harness: &H) {
    let holding = Holding::new(harness, &[("orders", "a", Retry, 0), ("orders", "b", Parked, 1)]).await;
    holding.settle(Vec::new(), vec![holding.messages[0].seq]).await;
    assert_eq!(harness.held().await.len(), 1);
    assert_eq!(holding.due(&[], &[]).await, [0_usize; 0]);
    assert_eq!(holding.relay.held(&[]).await.expect("look").messages, 1);
}

/// Not before.
pub async fn a_retry_is_due_when_its_time_has_come<H: Harness>(harness: &H) {
    let holding = Holding::new(harness, &[("orders", "a", Retry, 1)]).await;
    let later =
        outboxd_core::Hold { due_in: Duration::from_secs(3_600), ..hold(&holding.messages[0], Retry, 2) };
    holding.settle(vec![later], Vec::new()).await;
    assert!(!holding.relay.held(&[]).await.expect("look").due);
    assert_eq!(holding.due(&[], &[]).await, [0_usize; 0]);
    harness.age(Duration::from_secs(3_700)).await;
    assert!(holding.relay.held(&[]).await.expect("look").due);
    assert_eq!(holding.due(&[], &[]).await, [0]);
}

/// They wait for their topic, whatever else they wait for; other topics flow.
pub async fn messages_of_a_topic_that_cannot_be_written_to_stay<H: Harness>(harness: &H) {
    let holding = Holding::new(
        harness,
        &[
            ("gone", "a", Topic, 0),
            ("gone", "b", Retry, 1),
            ("orders", "a", Topic, 0),
            ("gone", "c", Behind, 0),
        ],
    )
    .await;
    let unblocked = [holding.key(3)];
    assert_eq!(holding.due(&["gone"], &unblocked).await, [2]);
    assert!(holding.relay.held(&["gone".into()]).await.expect("look").due);
    assert_eq!(holding.due(&["gone", "orders"], &unblocked).await, [0_usize; 0]);
    assert!(!holding.relay.held(&["gone".into(), "orders".into()]).await.expect("look").due);
    assert_eq!(holding.due(&[], &unblocked).await, [0, 1, 2, 3]);
}

/// Whatever state the followers are in, and also if no attempt was charged to it.
pub async fn a_parked_message_keeps_its_followers_back<H: Harness>(harness: &H) {
    let holding = Holding::new(
        harness,
        &[
            ("orders", "a", Parked, 0),
            ("orders", "a", Behind, 0),
            ("orders", "a", Retry, 0),
            ("orders", "a", Topic, 0),
        ],
    )
    .await;
    assert_eq!(holding.due(&[], &[]).await, [0_usize; 0]);
    assert_eq!(holding.due(&[], &[holding.key(0)]).await, [0_usize; 0]);
    assert_eq!(holding.relay.held(&[]).await.expect("look").unblocked, []);
}

/// A message in the middle that is not released yet is not overtaken either.
pub async fn a_follower_that_waits_keeps_later_ones_back<H: Harness>(harness: &H) {
    let holding = Holding::new(
        harness,
        &[("orders", "a", Retry, 0), ("orders", "a", Behind, 0), ("orders", "a", Retry, 0)],
    )
    .await;
    assert_eq!(holding.due(&[], &[]).await, [0]);
    assert_eq!(holding.due(&[], &[holding.key(0)]).await, [0, 1, 2]);
}

/// A head that waits for its next attempt is not overtaken.
pub async fn a_retry_that_is_not_due_keeps_its_followers_back<H: Harness>(harness: &H) {
    let holding = Holding::new(harness, &[("orders", "a", Retry, 0), ("orders", "a", Retry, 0)]).await;
    assert_eq!(holding.due(&[], &[]).await, [0, 1]);
    let later =
        outboxd_core::Hold { due_in: Duration::from_secs(3_600), ..hold(&holding.messages[0], Retry, 0) };
    holding.settle(vec![later], Vec::new()).await;
    assert_eq!(holding.due(&[], &[]).await, [0_usize; 0]);
}

/// A message that failed before may fail again, so nothing of its key goes with it.
pub async fn an_attempt_charged_keeps_the_followers_back<H: Harness>(harness: &H) {
    let holding = Holding::new(
        harness,
        &[
            ("orders", "a", Retry, 1),
            ("orders", "a", Retry, 0),
            ("orders", "b", Retry, 0),
            ("orders", "b", Retry, 2),
        ],
    )
    .await;
    assert_eq!(holding.due(&[], &[]).await, [0, 2, 3]);
}

/// When the head is gone its followers wait for nobody.
pub async fn a_key_whose_messages_are_all_behind_is_unblocked<H: Harness>(harness: &H) {
    let holding = Holding::new(
        harness,
        &[
            ("orders", "a", Retry, 1),
            ("orders", "a", Behind, 0),
            ("orders", "b", Parked, 1),
            ("orders", "b", Behind, 0),
            ("orders", "c", Retry, 1),
            ("orders", "c", Behind, 0),
            ("orders", "c", Behind, 0),
        ],
    )
    .await;
    assert_eq!(holding.relay.held(&[]).await.expect("look").unblocked, []);
    holding.settle(Vec::new(), vec![holding.messages[0].seq, holding.messages[4].seq]).await;
    let mut unblocked = holding.relay.held(&[]).await.expect("look").unblocked;
    unblocked.sort_unstable();
    let mut expected = vec![holding.key(0), holding.key(4)];
    expected.sort_unstable();
    assert_eq!(unblocked, expected);
}

/// And only those of the keys that are named.
pub async fn followers_of_an_unblocked_key_go_in_order<H: Harness>(harness: &H) {
    let holding = Holding::new(
        harness,
        &[("orders", "a", Behind, 0), ("orders", "b", Behind, 0), ("orders", "a", Behind, 0)],
    )
    .await;
    assert_eq!(holding.due(&[], &[]).await, [0_usize; 0]);
    assert!(!holding.relay.held(&[]).await.expect("look").due, "`behind` is not due by itself");
    assert_eq!(holding.due(&[], &[holding.key(0)]).await, [0, 2]);
    assert_eq!(holding.due(&[], &[holding.key(0), holding.key(1)]).await, [0, 1, 2]);
}

/// One of them may have become due by itself since the key was named.
pub async fn an_unblocked_key_goes_in_order_whatever_its_messages_wait_for<H: Harness>(harness: &H) {
    let holding = Holding::new(
        harness,
        &[
            ("orders", "a", Behind, 0),
            ("orders", "a", Topic, 0),
            ("orders", "b", Retry, 0),
            ("orders", "a", Behind, 0),
            ("orders", "a", Parked, 1),
            ("orders", "a", Behind, 0),
        ],
    )
    .await;
    assert_eq!(holding.due(&[], &[]).await, [2]);
    assert_eq!(holding.due(&[], &[holding.key(0)]).await, [0, 1, 2, 3]);
    assert_eq!(holding.due(&["orders"], &[holding.key(0)]).await, [0_usize; 0]);
}

/// Not even with the same key on another topic.
pub async fn keys_do_not_wait_for_one_another<H: Harness>(harness: &H) {
    let holding = Holding::new(
        harness,
        &[("orders", "a", Parked, 1), ("orders", "b", Retry, 1), ("invoices", "a", Retry, 1)],
    )
    .await;
    assert_eq!(holding.due(&[], &[]).await, [1, 2]);
}

/// Without a key there is no order.
pub async fn messages_without_a_key_wait_for_nobody<H: Harness>(harness: &H) {
    let keyless = Intent { topic: "orders".into(), payload: Some(b"x".to_vec()), ..Intent::default() };
    harness.commit(&[keyless.clone(), keyless]).await;
    let (relay, term, start) = leading(harness).await;
    let (held, cursor) = read_all(&relay, &start.cursor, messages(10)).await;
    let mut settlement = moving(term, &start.cursor, &cursor);
    settlement.holds = vec![hold(&held[0], Parked, 1), hold(&held[1], Retry, 1)];
    relay.settle(settlement).await.expect("settle");
    let query = ReleaseQuery { term, topics_held: Vec::new(), unblocked: Vec::new(), limit: messages(10) };
    let due = relay.due(&query, 0).await.expect("due").due;
    assert_eq!(due.iter().map(|due| due.message.seq).collect::<Vec<_>>(), [held[1].seq]);
    let start = relay.start(term).await.expect("start");
    assert_eq!(start.held, [], "no key is busy");
}

/// The policy `skip`: a message that is parked at last holds its key back no longer, and what waited behind it goes.
pub async fn a_message_that_is_skipped_lets_its_followers_go<H: Harness>(harness: &H) {
    let holding = Holding::new(
        harness,
        &[
            ("orders", "a", Retry, 1),
            ("orders", "a", Behind, 0),
            ("orders", "b", Parked, 1),
            ("orders", "a", Behind, 0),
        ],
    )
    .await;
    assert_eq!(holding.relay.held(&[]).await.expect("look").unblocked, []);
    let skipped = outboxd_core::Hold { key_hash: None, ..hold(&holding.messages[0], Parked, 2) };
    holding.settle(vec![skipped], Vec::new()).await;
    assert_eq!(holding.relay.held(&[]).await.expect("look").unblocked, [holding.key(0)]);
    assert_eq!(holding.due(&[], &[holding.key(0)]).await, [1, 3]);
    let start = holding.relay.start(holding.term).await.expect("start");
    let mut counts: Vec<_> = start.held.iter().map(|held| (held.key_hash, held.messages)).collect();
    let mut expected = vec![(holding.key(0), 2), (holding.key(2), 1)];
    counts.sort_unstable();
    expected.sort_unstable();
    assert_eq!(counts, expected);
    assert_eq!(harness.held().await.len(), 4, "it is held all the same");
}

/// It comes without the key, and neither waits for those of its key nor makes them wait.
pub async fn a_skipped_message_that_is_retried_has_no_order<H: Harness>(harness: &H) {
    let holding = Holding::new(
        harness,
        &[
            ("orders", "a", Parked, 1),
            ("orders", "a", Retry, 0),
            ("orders", "a", Retry, 1),
            ("orders", "a", Retry, 0),
        ],
    )
    .await;
    let skipped = outboxd_core::Hold { key_hash: None, ..hold(&holding.messages[0], Parked, 1) };
    let later = outboxd_core::Hold { key_hash: None, ..hold(&holding.messages[3], Parked, 1) };
    holding.settle(vec![skipped, later], Vec::new()).await;
    harness.retry(holding.messages[0].seq).await;
    harness.retry(holding.messages[3].seq).await;
    let query = ReleaseQuery {
        term: holding.term,
        topics_held: Vec::new(),
        unblocked: Vec::new(),
        limit: messages(10),
    };
    let due = holding.relay.due(&query, i64::MAX).await.expect("due").due;
    let came: Vec<_> = due.iter().map(|due| (holding.index(due.message.seq), due.key_hash)).collect();
    let key = Some(holding.key(1));
    assert_eq!(came, [(0, None), (1, key), (2, key), (3, None)]);
}

/// As a page: ascending, at most so many, at most so large, at least one.
pub async fn due_messages_come_in_order_and_within_the_limit<H: Harness>(harness: &H) {
    let holding = Holding::new(
        harness,
        &[
            ("orders", "c", Retry, 2),
            ("orders", "b", Topic, 0),
            ("orders", "a", Retry, 0),
            ("orders", "d", Retry, 0),
        ],
    )
    .await;
    let term = holding.term;
    let limited = |limit| ReleaseQuery { term, topics_held: Vec::new(), unblocked: Vec::new(), limit };
    let due = holding.relay.due(&limited(messages(3)), i64::MAX).await.expect("due").due;
    assert_eq!(due.iter().map(|due| holding.index(due.message.seq)).collect::<Vec<_>>(), [0, 1, 2]);
    assert_eq!(due.iter().map(|due| due.attempts).collect::<Vec<_>>(), [2, 0, 0]);
    assert_eq!(due[0].message.payload, holding.messages[0].payload);
    // Each has 5 bytes: a key of 1 and a payload of 4. They end with the one that reaches the limit, or before it.
    let bytes = |bytes| limited(PageLimit { messages: 10, bytes });
    let due = holding.relay.due(&bytes(11), i64::MAX).await.expect("due").due;
    assert!((2..=3).contains(&due.len()), "{} of 5 bytes for 11", due.len());
    let due = holding.relay.due(&bytes(1), i64::MAX).await.expect("due").due;
    assert_eq!(due.len(), 1);
}

/// The loop hears of it by the number of actions.
pub async fn a_retry_by_an_operator_makes_a_parked_message_due<H: Harness>(harness: &H) {
    let holding = Holding::new(harness, &[("orders", "a", Parked, 3), ("orders", "a", Behind, 0)]).await;
    let before = holding.relay.held(&[]).await.expect("look").actions;
    harness.retry(holding.messages[0].seq).await;
    let signal = holding.relay.held(&[]).await.expect("look");
    assert!(signal.actions > before && signal.due);
    assert_eq!(holding.due(&[], &[]).await, [0], "its follower still waits");
    let (_, _, _, attempts) = harness.held().await[0];
    assert_eq!(attempts, 3, "attempts stay charged");
}

/// The discarded one is gone, its successor takes its place.
pub async fn a_discard_by_an_operator_lets_the_next_of_the_key_go<H: Harness>(harness: &H) {
    let holding = Holding::new(
        harness,
        &[
            ("orders", "a", Parked, 3),
            ("orders", "b", Parked, 1),
            ("orders", "a", Behind, 0),
            ("orders", "a", Behind, 0),
        ],
    )
    .await;
    let before = holding.relay.held(&[]).await.expect("look").actions;
    harness.discard(holding.messages[0].seq).await;
    let signal = holding.relay.held(&[]).await.expect("look");
    assert!(signal.actions > before);
    assert!(signal.due, "the next of the key is due");
    assert_eq!(holding.due(&[], &[]).await, [2]);
    assert_eq!(harness.held().await.len(), 3);
    assert!(
        harness.intents().await.contains(&holding.messages[0].seq),
        "the intent stays until it is purged"
    );
}

/// What waits in the middle can be discarded without setting the head free.
pub async fn a_discarded_follower_leaves_its_head_parked<H: Harness>(harness: &H) {
    let holding = Holding::new(
        harness,
        &[("orders", "a", Parked, 3), ("orders", "a", Behind, 0), ("orders", "a", Behind, 0)],
    )
    .await;
    harness.discard(holding.messages[1].seq).await;
    assert_eq!(holding.due(&[], &[]).await, [0_usize; 0]);
    let states: Vec<_> = harness.held().await.into_iter().map(|(seq, state, ..)| (seq, state)).collect();
    assert_eq!(states, [(holding.messages[0].seq, Parked), (holding.messages[2].seq, Behind)]);
}

/// Counts are sent again only after an action, and then with its number.
pub async fn the_counts_come_again_after_an_operator_has_acted<H: Harness>(harness: &H) {
    let holding = Holding::new(
        harness,
        &[("orders", "a", Parked, 3), ("orders", "a", Behind, 0), ("orders", "b", Parked, 1)],
    )
    .await;
    let start = holding.relay.start(holding.term).await.expect("start");
    let term = holding.term;
    let query = ReleaseQuery { term, topics_held: Vec::new(), unblocked: Vec::new(), limit: messages(10) };
    let change = holding.relay.due(&query, start.actions).await.expect("due").change;
    assert!(change.is_none(), "nobody has acted");

    harness.discard(holding.messages[2].seq).await;
    let change = holding.relay.due(&query, start.actions).await.expect("due").change;
    let change = change.expect("somebody has acted");
    assert_eq!(
        change.held.iter().map(|held| (held.key_hash, held.messages)).collect::<Vec<_>>(),
        [(holding.key(0), 2)]
    );
    let again = holding.relay.due(&query, change.actions).await.expect("due").change;
    assert!(again.is_none(), "the number says that it is known");
    let start = holding.relay.start(holding.term).await.expect("start");
    assert_eq!(start.actions, change.actions);
}
