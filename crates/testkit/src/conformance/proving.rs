//! What a proof of delivery asks of every outbox.

use std::time::Duration;

use outboxd_core::HoldState::{Parked, Retry};
use outboxd_core::Seq;
use outboxd_core::receipts::RUN_SPAN;
use outboxd_engine::verify::place_of;
use outboxd_engine::{AuditedAction, HeldEdit, Operate, Outbox, Receipts, Settlement, Verify, Wanted};

use super::{
    Holding, Intent, Operated, dispatching, leading, messages, moving, read, read_all, receipts, seqs,
};

const HOUR: Duration = Duration::from_secs(3_600);

/// Each with the term that settled it; none for what was not dispatched.
pub async fn where_messages_landed_is_told_place_by_place<H: Operated>(harness: &H) {
    let (relay, term, start) = leading(harness).await;
    harness.commit(&Intent::several(5)).await;
    let page = read(&relay, &start.cursor, messages(3)).await.page;
    relay.settle(dispatching(term, &start.cursor, &page)).await.expect("settle");
    let operator = harness.operator();
    let landings = operator.landings(&(0..1_000).map(Seq).collect::<Vec<_>>()).await.expect("ask");
    let entries: Vec<_> = landings.iter().map(|landing| landing.entry.clone()).collect();
    assert_eq!(entries, receipts(&page.messages));
    assert!(landings.iter().all(|landing| landing.epoch == term.epoch && landing.replay.is_none()));
    assert!(landings.iter().all(|landing| landing.relay.is_some()));
    let middle = page.messages[1].seq;
    let one = operator.landings(&[middle]).await.expect("ask");
    assert_eq!(one.iter().map(|landing| landing.entry.seq).collect::<Vec<_>>(), [middle]);
}

/// A run out of order may begin far before the place, and another receipt in order covers what is around it.
pub async fn receipts_out_of_order_are_found_from_every_place<H: Operated>(harness: &H) {
    let holding = Holding::new(harness, &[("orders", "a", Retry, 0), ("orders", "b", Retry, 0)]).await;
    let more = usize::try_from(RUN_SPAN).expect("a span") + 500;
    harness.commit(&Intent::several(more)).await;
    let (read, after) = read_all(&holding.relay, &holding.cursor, messages(6_000)).await;
    let both = [holding.messages[0].clone(), holding.messages[1].clone(), read[more - 1].clone()];
    holding
        .relay
        .settle(Settlement {
            receipts: receipts(&read[..more - 1]),
            receipts_out_of_order: receipts(&both),
            released: seqs(&both[..2]),
            ..moving(holding.term, &holding.cursor, &after)
        })
        .await
        .expect("settle");
    let operator = harness.operator();
    let all: Vec<Seq> = seqs(&holding.messages).into_iter().chain(seqs(&read)).collect();
    let scattered: Vec<Seq> = all.iter().copied().step_by(1_003).collect();
    for places in
        [&all[..], &all[1..2], &all[2..3], &all[500..1_500], &all[more - 10..], &all[more + 1..], &scattered]
    {
        let found = operator.landings(places).await.expect("ask");
        assert_eq!(found.iter().map(|landing| landing.entry.seq).collect::<Vec<_>>(), places);
    }
}

/// Keys, payloads, tombstones, and what an operator has put in a payload's place.
pub async fn what_was_published_is_compared_by_its_hashes<H: Operated>(harness: &H) {
    let holding = Holding::new(harness, &[("orders", "a", Parked, 1)]).await;
    let tombstone = Intent { topic: "orders".into(), key: Some("a".into()), ..Intent::default() };
    let keyless = Intent { topic: "orders".into(), payload: Some(b"held".to_vec()), ..Intent::default() };
    harness.commit(&[tombstone, keyless, Intent::keyed("orders", "ключ", "held")]).await;
    let operator = harness.operator();
    let edit = HeldEdit { payload: Some(b"mended".to_vec()), ..HeldEdit::default() };
    let action = AuditedAction { who: "somebody".into(), why: "a test".into() };
    operator.held_edit(holding.messages[0].id.into(), &edit, &action).await.expect("edit");

    let next = Wanted::Next { above: Seq(0), upto: Seq(i64::MAX), limit: 10 };
    let prints = operator.fingerprints(&next).await.expect("ask");
    let [held, tombstone, keyless, other] = prints.as_slice() else { panic!("{prints:?}") };
    assert_eq!(
        (held.seq, held.id, &held.topic),
        (holding.messages[0].seq, holding.messages[0].id, &"orders".into())
    );
    // Of "held", as sha256sum has it.
    let of_held = "c20dea4d876b5b8fb0a1814b43017030cea6d4ac30b2d9ae71b404d2faba49b5";
    let hex = |hash: &[u8; 32]| hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    assert_eq!(held.payload.as_ref().map(hex).as_deref(), Some(of_held));
    assert!(held.edited.is_some_and(|edited| edited.is_some() && edited != held.payload));
    assert_eq!((tombstone.payload, tombstone.edited), (None, None));
    assert_eq!((tombstone.key, keyless.key), (held.key, None));
    assert_eq!((keyless.payload, other.payload), (held.payload, held.payload));
    assert!(other.key.is_some() && other.key != held.key);

    let some = operator.fingerprints(&Wanted::At(vec![other.seq, held.seq, Seq(9_999)])).await.expect("ask");
    assert_eq!(some, [held.clone(), other.clone()]);
    let span = Wanted::Next { above: held.seq, upto: keyless.seq, limit: 1 };
    assert_eq!(operator.fingerprints(&span).await.expect("ask"), std::slice::from_ref(tombstone));
}

/// By halving; a time after the last message has no place.
pub async fn a_time_is_found_among_the_messages<H: Operated>(harness: &H) {
    let old = harness.commit(&Intent::several(7)).await;
    harness.age(2 * HOUR).await;
    let new = harness.commit(&Intent::several(5)).await;
    let (relay, term, start) = leading(harness).await;
    let operator = harness.operator();
    assert_eq!(operator.ends().await.expect("ask"), None, "the cursor has come nowhere");
    let page = read(&relay, &start.cursor, messages(100)).await.page;
    relay.settle(dispatching(term, &start.cursor, &page)).await.expect("settle");
    let (first, last) = operator.ends().await.expect("ask").expect("there are messages");
    assert_eq!((first, last), (old[0], new[4]));
    let now = operator.history().await.expect("ask").now;
    let place = async |time| place_of(&operator, time, first, last).await.expect("ask");
    assert_eq!(place(now - 3 * HOUR).await, Some(old[0]));
    // Between two messages there may be places that none has.
    assert!(place(now - HOUR).await.is_some_and(|place| place > old[6] && place <= new[0]));
    assert_eq!(place(now + HOUR).await, None);
}

/// Others are not.
pub async fn ids_are_found_in_a_window_of_places<H: Operated>(harness: &H) {
    harness.commit(&Intent::several(5)).await;
    let operator = harness.operator();
    let next = Wanted::Next { above: Seq(0), upto: Seq(i64::MAX), limit: 10 };
    let prints = operator.fingerprints(&next).await.expect("ask");
    let mut ids: Vec<_> = prints.iter().map(|print| print.id).collect();
    ids.push(uuid::Uuid::new_v4());
    let found = operator.named(&ids, prints[0].seq, prints[2].seq).await.expect("ask");
    let mut seqs: Vec<Seq> = found.iter().map(|(_, seq)| *seq).collect();
    seqs.sort_unstable();
    assert_eq!(seqs, [prints[1].seq, prints[2].seq]);
    assert!(found.contains(&(prints[1].id, prints[1].seq)));
}

/// They explain copies, and so do failed attempts.
pub async fn the_history_tells_terms_that_ended_without_a_word<H: Operated>(harness: &H) {
    let (relay, first, _) = leading(harness).await;
    harness.vanish(relay).await;
    let (relay, second, _) = leading(harness).await;
    relay.step_down().await;
    let holding = Holding::new(harness, &[("orders", "a", Retry, 2), ("orders", "b", Parked, 0)]).await;
    let operator = harness.operator();
    let history = operator.history().await.expect("ask");
    let terms: Vec<_> = history.terms.iter().map(|term| (term.epoch, term.ended_at.is_some())).collect();
    assert_eq!(terms, [(first.epoch, false), (second.epoch, true), (holding.term.epoch, false)]);
    assert!(history.rewinds.is_empty() && history.rebased_at.is_none());
    let tried = operator.tried_again(&seqs(&holding.messages)).await.expect("ask");
    assert_eq!(tried, [holding.messages[0].seq]);
}
