//! What operators decide about held messages, one or many, and that the relay does as they say.

use std::time::Duration;

use outboxd_core::HoldState::{Behind, Parked, Retry, Topic};
use outboxd_core::{HoldReason, KeyHash};
use outboxd_engine::operate::EditRefusal;
use outboxd_engine::{
    AuditFilter, AuditedAction, BulkAction, HeldEdit, HeldFilter, HeldId, HeldSpan, HeldStep, Operate,
    OperateError, Outbox, PurgeLimit, ReleaseQuery, Upkeep as _,
};

use super::{Holding, Operated, messages};

fn action() -> AuditedAction {
    AuditedAction { who: "ada".into(), why: "decided".into() }
}

fn any() -> HeldFilter {
    HeldFilter::default()
}

/// Acts on everything that the filter means, in steps of so many. Returns how many were found, and acted on.
async fn act_on_all<H: Operated>(
    harness: &H,
    kind: BulkAction,
    filter: &HeldFilter,
    step: u32,
) -> (u64, u64) {
    let operator = harness.operator();
    let meant = operator.held_match(filter).await.expect("count");
    let (mut found, mut done) = (0, 0);
    let mut span = meant.last.map(HeldSpan::up_to);
    while let Some(now) = span {
        let HeldStep { found: f, done: d, reached } =
            operator.held_act(kind, filter, now, step, &action()).await.expect("act");
        assert!(f <= u64::from(step));
        found += f;
        done += d;
        span = reached.map(|reached| now.after(kind, reached));
    }
    assert_eq!(found, meant.messages);
    (found, done)
}

/// By key, age and a pattern of topics, beside what `held_messages_can_be_filtered` says.
pub async fn held_messages_are_found_by_key_age_and_pattern<H: Operated>(harness: &H) {
    let holding = Holding::new(
        harness,
        &[
            ("orders_eu", "a", Parked, 3),
            ("orders_eu", "a", Behind, 0),
            ("ordersXeu", "a", Parked, 1),
            ("audit", "b", Topic, 0),
        ],
    )
    .await;
    let operator = harness.operator();
    let places = async |filter: &HeldFilter| {
        let held = operator.held_list(filter).await.expect("list");
        let meant = operator.held_match(filter).await.expect("count");
        assert_eq!((meant.messages, meant.last), (held.len() as u64, held.last().map(|held| held.seq)));
        held.iter().map(|held| holding.index(held.seq)).collect::<Vec<_>>()
    };
    let topic = |pattern: &str| HeldFilter { topic: Some(pattern.parse().expect("a pattern")), ..any() };
    assert_eq!(places(&topic("orders*")).await, [0, 1, 2]);
    assert_eq!(places(&topic("*_eu")).await, [0, 1], "an underscore is itself");
    assert_eq!(places(&topic("*u*")).await, [0, 1, 2, 3]);
    assert_eq!(places(&topic("ORDERS*")).await, [0_usize; 0]);
    let key = HeldFilter { key_hash: Some(KeyHash::of_parts("orders_eu", "a")), ..any() };
    assert_eq!(places(&key).await, [0, 1]);
    let hour = Duration::from_secs(3_600);
    assert_eq!(places(&HeldFilter { older_than: Some(hour), ..any() }).await, [0_usize; 0]);
    assert_eq!(places(&HeldFilter { younger_than: Some(hour), ..any() }).await, [0, 1, 2, 3]);
    harness.age(2 * hour).await;
    assert_eq!(places(&HeldFilter { older_than: Some(hour), ..any() }).await, [0, 1, 2, 3]);
    assert_eq!(places(&HeldFilter { younger_than: Some(hour), ..any() }).await, [0_usize; 0]);
    assert_eq!(places(&HeldFilter { limit: 2, ..any() }).await, [0, 1]);
    let held = operator.held_list(&any()).await.expect("list");
    let head = HeldId { id: holding.messages[0].id, seq: Some(holding.messages[0].seq) };
    assert_eq!(held.iter().map(|held| held.behind).collect::<Vec<_>>(), [None, Some(head), None, None]);
}

/// The others follow by themselves, and each that was retried has its line in the audit.
pub async fn retrying_many_makes_the_heads_due_and_leaves_their_followers<H: Operated>(harness: &H) {
    let holding = Holding::new(
        harness,
        &[
            ("orders", "a", Parked, 3),
            ("orders", "a", Behind, 0),
            ("orders", "b", Parked, 1),
            ("other", "c", Parked, 1),
            ("orders", "d", Retry, 0),
        ],
    )
    .await;
    let before = holding.relay.held(&[]).await.expect("look").actions;
    let orders = HeldFilter { topic: Some("orders".parse().expect("a pattern")), ..any() };
    assert_eq!(act_on_all(harness, BulkAction::Retry, &orders, 2).await, (4, 2));
    assert!(holding.relay.held(&[]).await.expect("look").actions > before);
    assert_eq!(holding.due(&[], &[]).await, [0, 2, 4]);
    let audited: Vec<_> = harness.audit().await.into_iter().map(|(kind, id, ..)| (kind, id)).collect();
    let retry = |index: usize| ("retry".to_owned(), holding.messages[index].id);
    assert_eq!(audited, [retry(0), retry(2)]);
    assert_eq!(act_on_all(harness, BulkAction::Retry, &orders, 2).await.1, 0, "they are due already");
}

/// So whoever stops half-way has let nothing go that was to be discarded.
pub async fn discarding_many_begins_with_the_newest_and_frees_what_is_left_of_a_key<H: Operated>(
    harness: &H,
) {
    let holding = Holding::new(
        harness,
        &[
            ("orders", "a", Parked, 3),
            ("orders", "b", Parked, 1),
            ("orders", "a", Behind, 0),
            ("orders", "b", Behind, 0),
            ("orders", "a", Behind, 0),
        ],
    )
    .await;
    let operator = harness.operator();
    let key = HeldFilter { key_hash: Some(holding.key(0)), ..any() };
    let meant = operator.held_match(&key).await.expect("count");
    assert_eq!((meant.messages, meant.behind, meant.last), (3, 2, Some(holding.messages[4].seq)));
    let everything = HeldSpan::up_to(holding.messages[4].seq);
    let step = operator.held_act(BulkAction::Discard, &key, everything, 2, &action()).await.expect("act");
    assert_eq!((step.found, step.done, step.reached), (2, 2, Some(holding.messages[2].seq)));
    assert_eq!(holding.due(&[], &[]).await, [0_usize; 0], "the head keeps the rest back");
    let rest = everything.after(BulkAction::Discard, holding.messages[2].seq);
    let step = operator.held_act(BulkAction::Discard, &key, rest, 2, &action()).await.expect("act");
    assert_eq!((step.found, step.done), (1, 1));
    assert_eq!(harness.held().await.len(), 2, "the other key's messages");

    let parked = HeldFilter { state: Some(Parked), ..any() };
    assert_eq!(act_on_all(harness, BulkAction::Discard, &parked, 10).await, (1, 1));
    assert_eq!(holding.due(&[], &[]).await, [3], "it only waited for its head");
    assert_eq!(harness.audit().await.len(), 4);
}

/// The intent is what it was; the record is what the operator says.
pub async fn an_edit_is_applied_when_the_message_is_published<H: Operated>(harness: &H) {
    let holding = Holding::new(harness, &[("orders", "a", Parked, 3), ("orders", "a", Behind, 0)]).await;
    let operator = harness.operator();
    let id = holding.messages[0].id;
    let edit = HeldEdit {
        set_headers: vec![("tenant".into(), "42".into())],
        partition: Some(Some(3)),
        payload: Some(b"mended".to_vec()),
        ..HeldEdit::default()
    };
    operator.held_edit(id.into(), &edit, &action()).await.expect("edit");
    assert_eq!(holding.due(&[], &[]).await, [0_usize; 0], "it stays parked");
    let shown = operator.held_list(&any()).await.expect("list").remove(0);
    let edited = shown.edit.expect("it is shown");
    assert_eq!(edited.edited, ["headers", "partition", "payload"]);
    // A second edit keeps what the first has changed.
    let more =
        HeldEdit { set_headers: vec![("kind".into(), "x".into())], retry: true, ..HeldEdit::default() };
    operator.held_edit(id.into(), &more, &action()).await.expect("edit");
    let query = ReleaseQuery {
        topics_held: Vec::new(),
        unblocked: Vec::new(),
        limit: messages(10),
        term: holding.term,
    };
    let due = holding.relay.due(&query, 0).await.expect("due").due;
    assert_eq!(due.len(), 1);
    let published = &due[0].message;
    let mut headers = published.headers.clone();
    headers.sort();
    assert_eq!(headers, [("kind".into(), "x".into()), ("tenant".into(), "42".into())]);
    assert_eq!(published.payload.as_deref(), Some(&b"mended"[..]));
    assert_eq!((published.partition, &published.topic), (Some(3), &"orders".to_owned()));
    assert_eq!((published.id, &published.key), (id, &holding.messages[0].key));
    // The audit names what was changed and no value.
    let lines =
        operator.held_audit(&AuditFilter { id: Some(id), ..AuditFilter::default() }).await.expect("audit");
    assert_eq!(lines.iter().map(|line| line.kind.as_str()).collect::<Vec<_>>(), ["edit", "edit"]);
    let kept = serde_json::to_string(&lines).expect("JSON");
    assert!(kept.contains("tenant") && !kept.contains("mended") && !kept.contains("\"42\""), "{kept}");
}

/// The remedy for a name that was mistyped is an edit, also for who has tried it once more before.
pub async fn what_waits_for_its_topic_does_so_after_a_retry_and_can_be_sent_elsewhere<H: Operated>(
    harness: &H,
) {
    let holding = Holding::new(harness, &[("ordres", "a", Topic, 0), ("ordres", "b", Topic, 0)]).await;
    let operator = harness.operator();
    let (one, two) = (holding.messages[0].id, holding.messages[1].id);
    operator.held_retry(one, &action()).await.expect("retry");
    assert_eq!(act_on_all(harness, BulkAction::Retry, &any(), 10).await, (2, 2));
    let held = operator.held_list(&any()).await.expect("list");
    assert!(held.iter().all(|held| held.state == Topic), "{held:?}");
    assert_eq!(holding.due(&[], &[]).await, [0, 1]);
    for id in [one, two] {
        let edit = HeldEdit { topic: Some("orders".into()), ..HeldEdit::default() };
        operator.held_edit(id.into(), &edit, &action()).await.expect("edit");
    }
}

/// Its place in the order is another one, and what waited behind it is free.
pub async fn an_edit_of_the_topic_moves_the_message_to_another_key<H: Operated>(harness: &H) {
    let holding = Holding::new(
        harness,
        &[("ordres", "a", Topic, 0), ("ordres", "a", Behind, 0), ("orders", "a", Parked, 1)],
    )
    .await;
    let operator = harness.operator();
    let edit = HeldEdit { topic: Some("orders".into()), ..HeldEdit::default() };
    operator.held_edit(holding.messages[0].id.into(), &edit, &action()).await.expect("edit");
    let held = operator.held_list(&any()).await.expect("list");
    let key = Some(KeyHash::of_parts("orders", "a").to_string());
    assert_eq!((&held[0].topic, &held[0].key_hash, held[0].state), (&"orders".to_owned(), &key, Parked));
    assert_eq!(held[0].followers, 1, "it is older than what is held of its new key");
    assert_eq!(holding.due(&[], &[]).await, [1], "its follower goes without it");
    let start = holding.relay.start(holding.term).await.expect("start");
    let orders = start.held.iter().find(|held| held.key_hash == KeyHash::of_parts("orders", "a"));
    assert_eq!(orders.map(|held| held.messages), Some(2));
    operator.held_retry(holding.messages[0].id, &action()).await.expect("retry");
    let query = ReleaseQuery {
        topics_held: vec!["ordres".into()],
        unblocked: Vec::new(),
        limit: messages(10),
        term: holding.term,
    };
    let due = holding.relay.due(&query, 0).await.expect("due").due;
    assert_eq!(due.iter().map(|due| due.message.topic.as_str()).collect::<Vec<_>>(), ["orders"]);
}

/// Neither what might be with Kafka, nor what waits for another, nor what is no good.
pub async fn an_edit_that_would_break_something_is_refused<H: Operated>(harness: &H) {
    let holding = Holding::new(
        harness,
        &[("orders", "a", Parked, 3), ("orders", "a", Behind, 0), ("orders", "b", Retry, 1)],
    )
    .await;
    let operator = harness.operator();
    let edit = HeldEdit { topic: Some("payments".into()), ..HeldEdit::default() };
    let refused = async |index: usize, edit: &HeldEdit| {
        operator.held_edit(holding.messages[index].id.into(), edit, &action()).await.expect_err("refused")
    };
    assert!(
        matches!(refused(1, &edit).await, OperateError::Behind { head, .. } if head == holding.messages[0].id)
    );
    assert!(matches!(refused(2, &edit).await, OperateError::Edit { refusal: EditRefusal::Due, .. }));
    let internal = HeldEdit { topic: Some("__consumer_offsets".into()), ..HeldEdit::default() };
    assert!(matches!(refused(0, &internal).await, OperateError::Edit { refusal: EditRefusal::Topic(_), .. }));
    let large = HeldEdit { payload: Some(vec![b'x'; 1_000_000]), ..HeldEdit::default() };
    assert!(matches!(
        refused(0, &large).await,
        OperateError::Edit { refusal: EditRefusal::TooLarge { .. }, .. }
    ));
    let unknown = operator.held_edit(uuid::Uuid::new_v4().into(), &edit, &action()).await;
    assert!(matches!(unknown, Err(OperateError::NotHeld(_))));
    assert_eq!((harness.audit().await.len(), harness.edits().await), (0, 0), "nothing was done");
}

/// So that people know what was sent.
pub async fn an_edit_is_kept_as_long_as_its_intent<H: Operated>(harness: &H) {
    let holding = Holding::new(harness, &[("orders", "a", Parked, 3)]).await;
    let edit = HeldEdit { set_headers: vec![("tenant".into(), "42".into())], ..HeldEdit::default() };
    harness.operator().held_edit(holding.messages[0].id.into(), &edit, &action()).await.expect("edit");
    holding.settle(Vec::new(), vec![holding.messages[0].seq]).await;
    let keep = PurgeLimit {
        keep_messages: Duration::from_secs(60),
        keep_receipts: Duration::from_secs(60),
        rows: 10,
    };
    holding.relay.purge(keep).await.expect("purge");
    assert_eq!(harness.edits().await, 1);
    harness.age(Duration::from_secs(3_600)).await;
    assert_eq!(holding.relay.purge(keep).await.expect("purge").messages, 1);
    assert_eq!(harness.edits().await, 0);
}

/// Who discarded this?
pub async fn the_audit_is_listed_newest_first_and_filtered<H: Operated>(harness: &H) {
    let holding = Holding::new(harness, &[("orders", "a", Parked, 3), ("audit", "b", Parked, 1)]).await;
    let operator = harness.operator();
    let [first, second] = [holding.messages[0].id, holding.messages[1].id];
    operator.held_retry(first, &action()).await.expect("retry");
    let bob = AuditedAction { who: "bob".into(), why: "not needed".into() };
    operator.held_discard(second, &bob).await.expect("discard");
    let ids = async |filter: AuditFilter| {
        let lines = operator.held_audit(&filter).await.expect("audit");
        lines.iter().map(|line| line.id).collect::<Vec<_>>()
    };
    let any = AuditFilter::default;
    assert_eq!(ids(any()).await, [second, first]);
    assert_eq!(ids(AuditFilter { who: Some("bob".into()), ..any() }).await, [second]);
    assert_eq!(ids(AuditFilter { kind: Some("retry".into()), ..any() }).await, [first]);
    assert_eq!(ids(AuditFilter { topic: Some("aud*".parse().expect("a pattern")), ..any() }).await, [second]);
    assert_eq!(ids(AuditFilter { limit: 1, ..any() }).await, [second]);
    assert_eq!(ids(AuditFilter { older_than: Some(Duration::from_secs(60)), ..any() }).await.len(), 0);
    assert_eq!(ids(AuditFilter { younger_than: Some(Duration::from_secs(60)), ..any() }).await.len(), 2);
    let line =
        operator.held_audit(&AuditFilter { id: Some(second), ..any() }).await.expect("audit").remove(0);
    assert_eq!((line.who.as_str(), line.why.as_str(), line.kind.as_str()), ("bob", "not needed", "discard"));
    assert_eq!((line.seq, line.topic.as_str()), (holding.messages[1].seq, "audit"));
    assert_eq!(line.reason_held, HoldReason::InvalidRecord.as_str());
}
