//! What operators ask, and what is kept of what they do.

use std::time::Duration;

use outboxd_core::HoldState::{Behind, Parked, Retry, Topic};
use outboxd_core::{Hold, HoldReason};
use outboxd_engine::{AuditedAction, HeldFilter, HeldMessage, Operate, OperateError, Outbox, Severity};
use uuid::Uuid;

use super::{Holding, Intent, Operated, hold, leading, soon};

fn action(why: &str) -> AuditedAction {
    AuditedAction { who: "ops@example.org".into(), why: why.into() }
}

async fn list<H: Operated>(harness: &H, filter: HeldFilter) -> Vec<HeldMessage> {
    harness.operator().held_list(&filter).await.expect("list held messages")
}

/// Everything but the application's data.
pub async fn an_operator_sees_what_is_held_and_why<H: Operated>(harness: &H) {
    let holding = Holding::new(
        harness,
        &[
            ("orders", "a", Parked, 3),
            ("orders", "a", Behind, 0),
            ("orders", "a", Behind, 0),
            ("gone", "b", Retry, 1),
        ],
    )
    .await;
    let held = list(harness, HeldFilter::default()).await;
    let [head, _, last, retry] = &held[..] else { panic!("four held messages: {held:?}") };
    let message = &holding.messages[0];
    assert_eq!((head.seq, head.id, &head.topic), (message.seq, message.id, &message.topic));
    assert_eq!(head.correlation_id, message.correlation_id);
    assert_eq!((head.state, head.reason, head.attempts), (Parked, HoldReason::InvalidRecord, 3));
    assert_eq!(head.error.as_deref(), Some("refused after 3 attempts"));
    assert_eq!(head.failures.len(), 1);
    assert_eq!(head.failures[0].error, "refused after 3 attempts");
    assert_eq!(head.key_hash, Some(holding.key(0).to_string()));
    assert_eq!((head.followers, last.followers, retry.followers), (2, 0, 0));
    assert_eq!(head.payload_bytes, Some(4));
    assert_eq!(head.due_at, None, "it waits for an operator");
    assert!(retry.due_at.is_some());
    assert!(head.held_at >= head.created_at);
    assert_eq!(head.created_at, message.created_at);
    assert!(last.failures.is_empty() && last.error.is_none());
}

/// Whose broker's side a preflight has to look at.
pub async fn the_topics_in_use_are_listed_once_and_in_order<H: Operated>(harness: &H) {
    assert!(harness.operator().topics().await.expect("list topics").is_empty());
    let _holding = Holding::new(
        harness,
        &[("orders", "a", Parked, 3), ("gone", "b", Topic, 0), ("orders", "c", Retry, 1)],
    )
    .await;
    harness.commit(&[Intent::keyed("audit", "k", "")]).await;
    assert_eq!(harness.operator().topics().await.expect("list topics"), ["audit", "gone", "orders"]);
    let limit = harness.operator().max_message_bytes().await.expect("read the size limit");
    assert_eq!(limit, 1_000_000, "what topics are compared with");
}

/// The last one that was made.
pub async fn an_operator_sees_where_the_copy_of_a_parked_message_is<H: Operated>(harness: &H) {
    let holding = Holding::new(harness, &[("orders", "a", Parked, 1), ("orders", "b", Parked, 1)]).await;
    let copied = |place: Option<&str>, attempts| Hold {
        dead_letter: place.map(str::to_owned),
        ..hold(&holding.messages[0], Parked, attempts)
    };
    let seen = async || list(harness, HeldFilter::default()).await.remove(0).dead_letter;
    assert_eq!(seen().await, None);
    holding.settle(vec![copied(Some("dead[0]@17"), 2)], Vec::new()).await;
    assert_eq!(seen().await.as_deref(), Some("dead[0]@17"));
    holding.settle(vec![copied(None, 3)], Vec::new()).await;
    assert_eq!(seen().await.as_deref(), Some("dead[0]@17"), "the copy is still there");
    holding.settle(vec![copied(Some("dead[0]@18"), 4)], Vec::new()).await;
    assert_eq!(seen().await.as_deref(), Some("dead[0]@18"));
}

/// By id, topic, state and reason, and not more than asked for.
pub async fn held_messages_can_be_filtered<H: Operated>(harness: &H) {
    let holding = Holding::new(
        harness,
        &[
            ("orders", "a", Parked, 3),
            ("orders", "a", Behind, 0),
            ("gone", "b", Topic, 0),
            ("gone", "c", Retry, 1),
        ],
    )
    .await;
    let places = async |filter: HeldFilter| {
        list(harness, filter).await.iter().map(|held| holding.index(held.seq)).collect::<Vec<_>>()
    };
    let any = HeldFilter::default;
    assert_eq!(places(any()).await, [0, 1, 2, 3]);
    assert_eq!(places(HeldFilter { id: Some(holding.messages[2].id), ..any() }).await, [2]);
    assert_eq!(places(HeldFilter { topic: Some("gone".parse().expect("a pattern")), ..any() }).await, [2, 3]);
    assert_eq!(places(HeldFilter { state: Some(Behind), ..any() }).await, [1]);
    assert_eq!(places(HeldFilter { reason: Some(HoldReason::TopicUnknown), ..any() }).await, [2]);
    assert_eq!(places(HeldFilter { limit: 3, ..any() }).await, [0, 1, 2]);
    let both = HeldFilter { topic: Some("gone".parse().expect("a pattern")), state: Some(Parked), ..any() };
    assert_eq!(places(both).await, [0_usize; 0]);
    // What is filtered out still follows.
    assert_eq!(list(harness, HeldFilter { limit: 1, ..any() }).await[0].followers, 1);
}

/// Newest last.
pub async fn the_last_ten_failures_are_kept<H: Operated>(harness: &H) {
    let holding = Holding::new(harness, &[("orders", "a", Retry, 1)]).await;
    for attempts in 2..=13 {
        holding.settle(vec![hold(&holding.messages[0], Retry, attempts)], Vec::new()).await;
    }
    let held = list(harness, HeldFilter::default()).await.remove(0);
    let errors: Vec<_> = held.failures.iter().map(|failure| failure.error.clone()).collect();
    let expected: Vec<_> = (4..=13).map(|attempts| format!("refused after {attempts} attempts")).collect();
    assert_eq!(errors, expected);
    assert_eq!(held.error.as_deref(), Some("refused after 13 attempts"));
    assert!(held.failures.is_sorted_by_key(|failure| failure.at));
}

/// Who and why, for good.
pub async fn what_an_operator_did_is_kept_in_the_audit<H: Operated>(harness: &H) {
    let holding = Holding::new(harness, &[("orders", "a", Parked, 3), ("orders", "b", Parked, 1)]).await;
    let [first, second] = [holding.messages[0].id, holding.messages[1].id];
    let operator = harness.operator();
    operator.held_retry(first, &action("the schema was fixed")).await.expect("retry");
    operator.held_discard(second, &action("a test order")).await.expect("discard");
    let who = || "ops@example.org".to_owned();
    assert_eq!(
        harness.audit().await,
        [
            ("retry".into(), first, who(), "the schema was fixed".into()),
            ("discard".into(), second, who(), "a test order".into()),
        ]
    );
    harness.age(Duration::from_secs(1_000 * 24 * 3_600)).await;
    let everything = outboxd_engine::PurgeLimit {
        keep_messages: Duration::ZERO,
        keep_receipts: Duration::ZERO,
        rows: 100,
    };
    outboxd_engine::Upkeep::purge(&holding.relay, everything).await.expect("purge");
    assert_eq!(harness.audit().await.len(), 2, "the audit outlives what it is about");
}

/// The error names the one to deal with first.
pub async fn a_follower_is_never_retried_before_its_head<H: Operated>(harness: &H) {
    let holding = Holding::new(
        harness,
        &[("orders", "a", Parked, 3), ("orders", "a", Behind, 0), ("orders", "a", Behind, 0)],
    )
    .await;
    let operator = harness.operator();
    let refused = operator.held_retry(holding.messages[2].id, &action("hurry")).await;
    let (id, head) = (holding.messages[2].id, holding.messages[0].id);
    assert!(
        matches!(&refused, Err(OperateError::Behind { id: i, head: h }) if (*i, *h) == (id, head)),
        "{refused:?}"
    );
    assert_eq!(harness.audit().await, [], "nothing was done");
    assert_eq!(holding.due(&[], &[]).await, [0_usize; 0]);
    operator.held_retry(head, &action("in order")).await.expect("retry");
    assert_eq!(holding.due(&[], &[]).await, [0]);
}

/// Neither what never was nor what is done.
pub async fn what_is_not_held_cannot_be_retried_or_discarded<H: Operated>(harness: &H) {
    let holding = Holding::new(harness, &[("orders", "a", Parked, 3)]).await;
    let operator = harness.operator();
    let unknown = Uuid::new_v4();
    let refused = operator.held_retry(unknown, &action("?")).await;
    assert!(matches!(&refused, Err(OperateError::NotHeld(id)) if *id == unknown), "{refused:?}");
    let id = holding.messages[0].id;
    operator.held_discard(id, &action("once")).await.expect("discard");
    let refused = operator.held_discard(id, &action("twice")).await;
    assert!(matches!(&refused, Err(OperateError::NotHeld(gone)) if *gone == id), "{refused:?}");
    assert_eq!(harness.audit().await.len(), 1);
}

/// A relay that was trying the message while it was discarded does not bring it back.
pub async fn a_discarded_message_stays_discarded<H: Operated>(harness: &H) {
    let holding = Holding::new(harness, &[("orders", "a", Retry, 1)]).await;
    assert_eq!(holding.due(&[], &[]).await, [0]);
    harness.operator().held_discard(holding.messages[0].id, &action("enough")).await.expect("discard");
    let failed_again: Hold = hold(&holding.messages[0], Retry, 2);
    holding.settle(vec![failed_again], Vec::new()).await;
    assert_eq!(harness.held().await, []);
}

/// At a glance.
pub async fn the_status_tells_leader_cursor_and_backlog<H: Operated>(harness: &H) {
    let operator = harness.operator();
    let fresh = operator.status().await.expect("status");
    assert!(!fresh.leader.alive && fresh.settled_at.is_none(), "{fresh:?}");
    assert_eq!((fresh.backlog_messages, fresh.schema_version), (0, 3));

    let holding = Holding::new(harness, &[("orders", "a", Parked, 3)]).await;
    harness.commit(&Intent::several(2)).await;
    let status = operator.status().await.expect("status");
    assert!(
        status.leader.alive && status.leader.led_at.is_some() && status.leader.relay.is_some(),
        "{status:?}"
    );
    assert_eq!(status.leader.epoch, holding.term.epoch);
    assert_eq!(status.cursor, holding.cursor.to_string());
    assert!(status.settled_at.is_some());
    assert_eq!(status.backlog_messages, 2);
    assert_eq!(status.held, [("parked".into(), "invalid_record".into(), 1)]);

    holding.relay.step_down().await;
    soon("the lead was given back", async || {
        let status = operator.status().await.expect("status");
        (!status.leader.alive).then_some(())
    })
    .await;
}

/// A preflight that cries wolf is not read.
pub async fn nothing_is_wrong_with_a_fresh_outbox<H: Operated>(harness: &H) {
    let findings = harness.operator().check().await.expect("check");
    assert!(!findings.is_empty());
    let errors: Vec<_> = findings.iter().filter(|finding| finding.severity == Severity::Error).collect();
    assert!(errors.is_empty(), "{errors:?}");
    let _leader = leading(harness).await;
    let findings = harness.operator().check().await.expect("check while a relay leads");
    assert!(findings.iter().all(|finding| finding.severity != Severity::Error), "{findings:?}");
}
