//! One relay leads, and whoever led before is refused.

use std::time::Duration;

use outboxd_core::HoldState::{Behind, Parked};
use outboxd_core::Seq;
use outboxd_engine::{Outbox, OutboxError, Settlement, Trial};

use super::{Harness, Holding, Intent, dispatching, hold, lead, leading, messages, moving, read};

/// While a relay leads, another one is told so and gets no term.
pub async fn a_second_relay_does_not_lead<H: Harness>(harness: &H) {
    let (relay, term, _) = leading(harness).await;
    let standby = harness.relay();
    for _ in 0..3 {
        assert_eq!(standby.lead().await.expect("ask for the lead"), None);
    }
    relay.keep(term).await.expect("the leader is not disturbed");
}

/// A lead that was given back is free, long before it would lapse.
pub async fn stepping_down_lets_another_relay_lead_at_once<H: Harness>(harness: &H) {
    let (relay, ..) = leading(harness).await;
    let standby = harness.relay();
    assert_eq!(standby.lead().await.expect("ask for the lead"), None);
    relay.step_down().await;
    let asked = tokio::time::Instant::now();
    lead(&standby).await;
    assert!(asked.elapsed() < Duration::from_secs(5), "the lead was given back {:?} ago", asked.elapsed());
    // The other one comes back as a standby.
    assert_eq!(relay.lead().await.expect("ask for the lead"), None);
}

/// A relay that ends without giving the lead back does not keep it.
pub async fn a_relay_that_vanishes_is_replaced<H: Harness>(harness: &H) {
    let (relay, term, _) = leading(harness).await;
    harness.vanish(relay).await;
    let (_, next, _) = leading(harness).await;
    assert!(next.epoch > term.epoch, "epoch {} after {}", next.epoch, term.epoch);
}

/// Terms are told apart by their epochs, and by their nonces even if a crash takes an epoch back.
pub async fn every_lead_has_a_higher_epoch_and_another_nonce<H: Harness>(harness: &H) {
    let mut terms = Vec::new();
    for _ in 0..3 {
        let (relay, term, _) = leading(harness).await;
        relay.step_down().await;
        terms.push(term);
    }
    assert!(terms.is_sorted_by(|a, b| a.epoch < b.epoch), "{terms:?}");
    assert!(terms.iter().all(|a| terms.iter().filter(|b| a.nonce == b.nonce).count() == 1), "{terms:?}");
}

/// A leader that was frozen while another one began is refused by name, and nothing of what it settles is stored.
pub async fn a_fenced_term_cannot_settle<H: Harness>(harness: &H) {
    harness.commit(&Intent::several(2)).await;
    let (relay, term, start) = leading(harness).await;
    let page = read(&relay, &start.cursor, messages(10)).await.page;
    let mut settlement = dispatching(term, &start.cursor, &page);
    settlement.receipts.pop();
    settlement.holds.push(hold(&page.messages[1], Parked, 1));

    harness.fence().await;
    let refused = relay.settle(settlement).await;
    assert!(matches!(refused, Err(OutboxError::Fenced)), "{refused:?}");
    assert_eq!(harness.cursor().await, start.cursor);
    assert_eq!(harness.receipts().await, []);
    assert_eq!(harness.held().await, []);
}

/// It finds out when it says that it is alive.
pub async fn a_fenced_term_cannot_be_kept<H: Harness>(harness: &H) {
    let (relay, term, _) = leading(harness).await;
    relay.keep(term).await.expect("keep");
    harness.fence().await;
    let refused = relay.keep(term).await;
    assert!(matches!(refused, Err(OutboxError::Fenced)), "{refused:?}");
}

/// Nor does it go back to the settled cursor as if nothing had happened.
pub async fn a_fenced_term_cannot_start_again<H: Harness>(harness: &H) {
    let (relay, term, _) = leading(harness).await;
    relay.start(term).await.expect("start again within the term");
    harness.fence().await;
    let refused = relay.start(term).await.map(|start| start.cursor);
    assert!(matches!(refused, Err(OutboxError::Fenced)), "{refused:?}");
}

/// After stepping down, what is left of the term can do nothing.
pub async fn a_term_that_was_given_back_cannot_settle<H: Harness>(harness: &H) {
    harness.commit(&Intent::several(1)).await;
    let (relay, term, start) = leading(harness).await;
    let page = read(&relay, &start.cursor, messages(10)).await.page;
    relay.step_down().await;
    assert!(relay.settle(dispatching(term, &start.cursor, &page)).await.is_err());
    let (next, ..) = leading(harness).await;
    assert!(relay.settle(dispatching(term, &start.cursor, &page)).await.is_err());
    assert_eq!(harness.cursor().await.high, start.cursor.high);
    assert_eq!(harness.receipts().await, []);
    next.step_down().await;
}

/// What the last leader settled is where the next one starts, held keys included.
pub async fn a_new_leader_starts_from_the_settled_cursor_and_the_held_keys<H: Harness>(harness: &H) {
    let holding = Holding::new(
        harness,
        &[("orders", "a", Parked, 1), ("orders", "a", Behind, 0), ("orders", "b", Parked, 1)],
    )
    .await;
    holding.relay.step_down().await;
    let relay = harness.relay();
    let (term, start) = lead(&relay).await;
    assert_eq!(start.cursor, holding.cursor);
    let mut held: Vec<_> = start.held.iter().map(|held| (held.key_hash, held.messages)).collect();
    held.sort_unstable();
    let mut expected = vec![(holding.key(0), 2), (holding.key(2), 1)];
    expected.sort_unstable();
    assert_eq!(held, expected);

    let released =
        Settlement { released: vec![holding.messages[2].seq], ..moving(term, &start.cursor, &start.cursor) };
    relay.settle(released).await.expect("settle");
    let start = relay.start(term).await.expect("start within the term");
    assert_eq!(start.held.len(), 1, "the second start reads the held keys again");
}

/// A count of ends without a word, which a settle that proves the term and an orderly end bring back to nothing.
pub async fn terms_that_end_without_a_word_are_counted<H: Harness>(harness: &H) {
    for ended in 0..3 {
        let (relay, _, start) = leading(harness).await;
        assert_eq!(start.terms_unsettled, ended);
        harness.vanish(relay).await;
    }
    let (relay, term, start) = leading(harness).await;
    assert_eq!(start.terms_unsettled, 3);
    let unproven = Settlement { proves_term: false, ..moving(term, &start.cursor, &start.cursor) };
    relay.settle(unproven).await.expect("settle");
    assert_eq!(relay.start(term).await.expect("start within the term").terms_unsettled, 3);
    relay.settle(moving(term, &start.cursor, &start.cursor)).await.expect("settle");
    assert_eq!(relay.start(term).await.expect("start within the term").terms_unsettled, 0);
    harness.vanish(relay).await;
    let (relay, _, start) = leading(harness).await;
    assert_eq!(start.terms_unsettled, 0, "a term that got on is not counted");
    harness.vanish(relay).await;
    let (relay, _, start) = leading(harness).await;
    assert_eq!(start.terms_unsettled, 1);
    relay.step_down().await;
    let (_relay, _, start) = leading(harness).await;
    assert_eq!(start.terms_unsettled, 0, "an orderly end");
}

/// Whoever leads next finds it, until a settle takes it back.
pub async fn an_attempt_that_was_started_is_noted_until_it_is_finished<H: Harness>(harness: &H) {
    let holding = Holding::new(harness, &[("orders", "a", Parked, 1)]).await;
    let held = holding.messages[0].seq;
    for (seq, trials, is_held) in [(held, 2, true), (Seq(held.0 + 1), 1, false)] {
        let trial = Some(Trial { seq, trials });
        let noting = Settlement { trial, ..moving(holding.term, &holding.cursor, &holding.cursor) };
        holding.relay.settle(noting).await.expect("note an attempt");
        let start = holding.relay.start(holding.term).await.expect("start within the term");
        assert_eq!((start.trial, start.trial_is_held), (trial, is_held));
    }
    harness.vanish(holding.relay).await;
    let (relay, term, start) = leading(harness).await;
    assert_eq!(start.trial.map(|trial| trial.trials), Some(1));
    relay.settle(moving(term, &start.cursor, &start.cursor)).await.expect("settle");
    assert_eq!(relay.start(term).await.expect("start within the term").trial, None);
}
