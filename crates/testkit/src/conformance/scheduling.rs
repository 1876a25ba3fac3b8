//! Messages whose time has not come.

use std::time::Duration;

use outboxd_core::{HoldReason, HoldState, KeyHash, Message, Scheduled};
use outboxd_engine::{Outbox, OutboxError, PurgeLimit, Release, ReleaseQuery, Settlement, Upkeep};

use super::{Harness, Holding, Intent, dispatching, hold, leading, messages, moving, read_all, seqs};

const HOUR: Duration = Duration::from_secs(3_600);

fn scheduled(message: &Message) -> Scheduled {
    Scheduled { seq: message.seq, topic: message.topic.clone(), key_hash: KeyHash::of(message) }
}

/// A leader that has settled every intent: those with a time as scheduled, the others as the given holds.
async fn settled<H: Harness>(harness: &H, intents: &[Intent], held: HoldState) -> Holding<H::Outbox> {
    harness.commit(intents).await;
    let (relay, term, start) = leading(harness).await;
    let (messages, cursor) = read_all(&relay, &start.cursor, messages(1_000)).await;
    let (later, now): (Vec<&Message>, Vec<&Message>) =
        messages.iter().partition(|message| message.deliver_after.is_some());
    let settlement = Settlement {
        scheduled: later.into_iter().map(scheduled).collect(),
        holds: now.into_iter().map(|message| hold(message, held, 1)).collect(),
        ..moving(term, &start.cursor, &cursor)
    };
    relay.settle(settlement).await.expect("settle");
    Holding { relay, term, cursor, messages }
}

async fn release<O: Outbox>(holding: &Holding<O>) -> Result<Release, OutboxError> {
    let query = ReleaseQuery {
        term: holding.term,
        topics_held: Vec::new(),
        unblocked: Vec::new(),
        limit: messages(1_000),
    };
    holding.relay.due(&query, i64::MAX).await
}

/// Nothing is held, no key is busy; then it is due like any other.
pub async fn a_scheduled_message_waits_for_its_time_and_blocks_nobody<H: Harness>(harness: &H) {
    let intents = [Intent::scheduled("orders", "a", HOUR), Intent::scheduled("orders", "b", 3 * HOUR)];
    let holding = settled(harness, &intents, HoldState::Parked).await;
    assert!(holding.messages.iter().all(|message| message.deliver_after.is_some()));
    assert_eq!(harness.scheduled().await, seqs(&holding.messages));
    let signal = holding.relay.held(&[]).await.expect("look");
    assert!(signal.messages > 0 && !signal.due, "worth asking, and nothing to do: {signal:?}");
    assert_eq!(holding.relay.start(holding.term).await.expect("start").held, []);
    let early = release(&holding).await.expect("due");
    assert!(early.due.is_empty() && early.promoted.is_empty(), "{early:?}");

    harness.age(2 * HOUR).await;
    assert!(holding.relay.held(&[]).await.expect("look").due);
    let late = release(&holding).await.expect("due");
    let [due] = late.due.as_slice() else { panic!("{late:?}") };
    assert_eq!((due.message.seq, due.attempts), (holding.messages[0].seq, 0));
    assert_eq!(late.promoted, [holding.key(0)], "its key is busy until it is published");
    assert!(
        due.message.age < HOUR + Duration::from_secs(60),
        "{:?}: its age counts from its time on",
        due.message.age
    );
    assert_eq!(harness.scheduled().await, [holding.messages[1].seq]);
    let start = holding.relay.start(holding.term).await.expect("start");
    assert_eq!(
        start.held.iter().map(|held| (held.key_hash, held.messages)).collect::<Vec<_>>(),
        [(holding.key(0), 1)]
    );
    holding.settle(Vec::new(), vec![holding.messages[0].seq]).await;
    assert!(!holding.relay.held(&[]).await.expect("look").due);
}

/// Its place is where it was inserted, but it waits as long as anything of its key is held.
pub async fn a_message_whose_time_has_come_goes_behind_what_is_held_of_its_key<H: Harness>(harness: &H) {
    let intents = [
        Intent::scheduled("orders", "a", HOUR),
        Intent::keyed("orders", "a", "head"),
        Intent::scheduled("invoices", "a", HOUR),
    ];
    let holding = settled(harness, &intents, HoldState::Parked).await;
    harness.age(2 * HOUR).await;
    let release = release(&holding).await.expect("due");
    assert_eq!(
        seqs(&release.due.iter().map(|due| due.message.clone()).collect::<Vec<_>>()),
        [holding.messages[2].seq]
    );
    let held = harness.held().await;
    assert_eq!(held[0], (holding.messages[0].seq, HoldState::Behind, HoldReason::Behind, 0));
    assert_eq!(held[2], (holding.messages[2].seq, HoldState::Retry, HoldReason::Scheduled, 0));
    assert_eq!(holding.relay.held(&[]).await.expect("look").unblocked, []);
    // The head is dispatched: nothing blocks the key.
    holding.settle(Vec::new(), vec![holding.messages[1].seq]).await;
    assert_eq!(holding.relay.held(&[]).await.expect("look").unblocked, [holding.key(0)]);
    assert_eq!(holding.due(&[], &[holding.key(0)]).await, [0, 2]);
}

/// The later one has its own time or topic to wait for; when it is due, both go, in order.
pub async fn a_message_whose_time_has_come_before_one_that_is_tried_again_keeps_neither_waiting<
    H: Harness,
>(
    harness: &H,
) {
    for held in [HoldState::Topic, HoldState::Retry] {
        let key = held.as_str();
        let intents = [Intent::scheduled("orders", key, HOUR), Intent::keyed("orders", key, "head")];
        let holding = settled(harness, &intents, held).await;
        harness.age(2 * HOUR).await;
        let mut unblocked = Vec::new();
        let mut out = Vec::new();
        for _ in 0..4 {
            let query = ReleaseQuery {
                term: holding.term,
                topics_held: Vec::new(),
                unblocked,
                limit: messages(1_000),
            };
            let due = holding.relay.due(&query, i64::MAX).await.expect("due").due;
            let released: Vec<_> = due.iter().map(|due| due.message.seq).collect();
            if !released.is_empty() {
                holding.settle(Vec::new(), released.clone()).await;
            }
            out.extend(released);
            unblocked = holding.relay.held(&[]).await.expect("look").unblocked;
        }
        assert_eq!(out, seqs(&holding.messages), "{held:?}");
        assert_eq!(harness.held().await, [], "{held:?}");
        holding.relay.step_down().await;
    }
}

/// A cancellation is of what was written before it.
pub async fn an_id_that_is_used_again_after_a_cancellation_is_delivered<H: Harness>(harness: &H) {
    let first = harness.commit(&[Intent::scheduled("orders", "a", HOUR)]).await;
    harness.cancel(first[0]).await;
    let again = harness.commit_again(first[0], &Intent::scheduled("orders", "a", HOUR)).await;
    let holding = settled(harness, &[], HoldState::Parked).await;
    harness.age(2 * HOUR).await;
    let release = release(&holding).await.expect("due");
    let due: Vec<_> = release.due.iter().map(|due| due.message.seq).collect();
    assert_eq!(due, [again]);
}

/// As they were inserted, whatever the order of their times.
pub async fn those_of_a_key_that_are_due_together_go_in_order<H: Harness>(harness: &H) {
    let intents = [Intent::scheduled("orders", "a", HOUR), Intent::scheduled("orders", "a", HOUR / 2)];
    let holding = settled(harness, &intents, HoldState::Parked).await;
    harness.age(2 * HOUR).await;
    let release = release(&holding).await.expect("due");
    assert_eq!(
        seqs(&release.due.iter().map(|due| due.message.clone()).collect::<Vec<_>>()),
        seqs(&holding.messages)
    );
    assert_eq!(release.promoted, [holding.key(0); 2]);
}

/// Whether it was taken over by the relay before or after.
pub async fn a_cancelled_message_is_not_delivered_and_the_audit_says_so<H: Harness>(harness: &H) {
    let early = harness.commit(&[Intent::scheduled("orders", "a", HOUR)]).await;
    harness.cancel(early[0]).await;
    let holding = settled(harness, &[Intent::scheduled("orders", "b", HOUR)], HoldState::Parked).await;
    harness.cancel(holding.messages[1].seq).await;
    let before = holding.relay.held(&[]).await.expect("look").actions;
    harness.age(2 * HOUR).await;
    let release = release(&holding).await.expect("due");
    assert!(release.due.is_empty() && release.promoted.is_empty(), "{release:?}");
    assert!(harness.scheduled().await.is_empty() && harness.held().await.is_empty());
    let signal = holding.relay.held(&[]).await.expect("look");
    assert!(signal.actions == before && !signal.due && signal.messages == 0, "{signal:?}");
}

/// What it would hold, the next leader could have counted without.
pub async fn a_fenced_term_makes_nothing_due<H: Harness>(harness: &H) {
    let holding = settled(harness, &[Intent::scheduled("orders", "a", HOUR)], HoldState::Parked).await;
    harness.age(2 * HOUR).await;
    harness.fence().await;
    assert!(matches!(release(&holding).await, Err(OutboxError::Fenced)));
    assert_eq!(harness.scheduled().await.len(), 1);
}

/// Nothing is late before its time.
pub async fn scheduled_messages_are_counted_and_age_from_their_time_on<H: Harness>(harness: &H) {
    let waiting = harness.commit(&[Intent::scheduled("orders", "a", 3 * HOUR)]).await;
    harness.age(HOUR).await;
    let (relay, term, start) = leading(harness).await;
    assert_eq!(relay.backlog().await.expect("measure").oldest_age, Duration::ZERO, "{waiting:?} is not late");
    let (read, cursor) = read_all(&relay, &start.cursor, messages(10)).await;
    let scheduled = read.iter().map(scheduled).collect();
    relay.settle(Settlement { scheduled, ..moving(term, &start.cursor, &cursor) }).await.expect("settle");
    let backlog = relay.backlog().await.expect("measure");
    assert_eq!((backlog.messages, backlog.oldest_age, backlog.scheduled), (0, Duration::ZERO, 1));
    harness.age(3 * HOUR).await;
    let backlog = relay.backlog().await.expect("measure");
    assert_eq!((backlog.messages, backlog.scheduled), (0, 0));
    assert!(backlog.oldest_age > HOUR / 2 && backlog.oldest_age < 2 * HOUR, "{:?}", backlog.oldest_age);
}

/// However old the intent is.
pub async fn purge_leaves_what_is_scheduled_alone<H: Harness>(harness: &H) {
    let intents = [Intent::scheduled("orders", "a", 9 * HOUR), Intent::keyed("orders", "b", "now")];
    harness.commit(&intents).await;
    let (relay, term, start) = leading(harness).await;
    let (read, cursor) = read_all(&relay, &start.cursor, messages(10)).await;
    let page = outboxd_core::Page {
        from: start.cursor.clone(),
        snapshot: cursor.seen.clone(),
        late: 0,
        late_complete: true,
        messages: vec![read[1].clone()],
    };
    let settlement =
        Settlement { scheduled: vec![scheduled(&read[0])], ..dispatching(term, &start.cursor, &page) };
    relay.settle(settlement).await.expect("settle");
    harness.age(8 * HOUR).await;
    let limit = PurgeLimit { keep_messages: HOUR, keep_receipts: HOUR, rows: 100 };
    assert_eq!(relay.purge(limit).await.expect("purge").messages, 1);
    assert_eq!(harness.intents().await, [read[0].seq]);
}
