//! From facts to sentences, without a database.

use serde_json::{Value, json};
use time::format_description::well_known::Rfc3339;

use super::*;

/// A time of one day, by its seconds after noon.
fn at(seconds: i64) -> OffsetDateTime {
    OffsetDateTime::parse("2031-02-03T12:00:00Z", &Rfc3339).unwrap() + time::Duration::seconds(seconds)
}

fn text(seconds: i64) -> String {
    at(seconds).format(&Rfc3339).unwrap()
}

fn id(n: u128) -> Uuid {
    Uuid::from_u128(n)
}

/// Written at its `seq` in seconds.
fn intent(seq: i64) -> Value {
    json!({ "seq": seq, "id": id(u128::try_from(seq).unwrap()), "xid": "8123", "topic": "orders", "correlation_id": "req",
        "created_at": text(seq), "keyed": true, "payload_bytes": 2 })
}

fn standing(change: Value) -> Standing {
    let mut standing = json!({ "now": text(100), "epoch": 4, "relay": "r1", "led_at": text(0), "settled_at": text(99),
        "alive": true, "receipts_since": text(0), "indexes": [], "table_bytes": 0 });
    merge(&mut standing, change);
    serde_json::from_value(standing).unwrap()
}

fn merge(value: &mut Value, change: Value) {
    let Value::Object(change) = change else { panic!("an object") };
    value.as_object_mut().unwrap().extend(change);
}

fn gathered(standing: Standing, intents: Vec<Value>, facts: Vec<Value>) -> Gathered {
    Gathered {
        asked: "req".into(),
        standing,
        intents: intents.into_iter().map(|intent| (serde_json::from_value(intent).unwrap(), true)).collect(),
        more: false,
        facts: facts.into_iter().map(|fact| serde_json::from_value(fact).unwrap()).collect(),
        landed: Vec::new(),
        replays: Vec::new(),
        transactions: None,
        place: None,
        notes: Vec::new(),
        claims: Vec::new(),
        contents: Vec::new(),
    }
}

fn dealt_with(seq: i64) -> Value {
    json!({ "place": { "seq": seq, "dealt_with": true, "late": false, "before": null } })
}

fn ahead(seq: i64, before: u64) -> Value {
    json!({ "place": { "seq": seq, "dealt_with": false, "late": false, "before": before } })
}

fn held(seq: i64, change: Value) -> Value {
    let mut held = json!({ "seq": seq, "topic": "orders", "state": "parked", "reason": "too_large", "error": null, "attempts": 0,
        "failures": [], "held_at": text(50), "dead_letter": null, "head": null });
    merge(&mut held, change);
    json!({ "held": held })
}

fn landed(seq: i64, epoch: i64, replay: Option<i64>, second: i64) -> Landed {
    Landed {
        seq: Seq(seq),
        topic: "orders".into(),
        partition: 2,
        offset: 17,
        acknowledged_at: at(second),
        settled_at: at(second + 1),
        receipt: 812,
        epoch,
        relay: Some("r2".into()),
        replay,
    }
}

fn the_only(gathered: Gathered) -> TracedMessage {
    let mut traced = tell(gathered);
    assert_eq!(traced.messages.len(), 1);
    traced.messages.remove(0)
}

fn waits(standing: Standing, facts: Vec<Value>) -> (TracedState, String, String) {
    let message = the_only(gathered(standing, vec![intent(10)], facts));
    (message.state, message.waits_for.unwrap_or_default(), message.remedy.unwrap_or_default())
}

fn kinds(message: &TracedMessage) -> Vec<StepKind> {
    message.timeline.iter().map(|step| step.kind).collect()
}

#[test]
fn what_an_undelivered_message_waits_for_is_said_exactly() {
    let alive = || standing(json!({}));
    let head = |state: &str, reason: &str| {
        json!({ "state": "behind", "reason": "behind",
            "head": { "seq": 3, "id": id(3), "state": state, "reason": reason } })
    };
    let (three, now) = (id(3), "2031-02-03T12:00:50Z");
    for (fact, state, said) in [
        (
            vec![held(10, head("parked", "too_large"))],
            TracedState::Held,
            format!("behind parked message {three} of the same key (too_large)"),
        ),
        (
            vec![held(10, head("topic", "topic_unknown"))],
            TracedState::Held,
            format!("behind message {three} of the same key, which waits for its topic (topic_unknown)"),
        ),
        (
            vec![held(10, json!({ "state": "topic", "reason": "topic_unknown" }))],
            TracedState::Held,
            format!("topic orders does not exist (held since {now})"),
        ),
        (
            vec![held(10, json!({ "state": "topic", "reason": "topic_unauthorized" }))],
            TracedState::Held,
            format!("the relay may not write to topic orders (held since {now})"),
        ),
        (
            vec![held(10, json!({}))],
            TracedState::Held,
            format!("parked since {now} (too_large): The record is larger than the topic takes."),
        ),
        (
            vec![held(
                10,
                json!({ "state": "retry", "reason": "unknown_error", "error": "Boom", "attempts": 2, "due_at": text(160) }),
            )],
            TracedState::Held,
            "tried again at 2031-02-03T12:02:40Z, after 2 attempts that failed: Boom".into(),
        ),
        (
            vec![
                json!({ "scheduled": { "seq": 10, "due_at": text(500), "scheduled_at": text(11) } }),
                dealt_with(10),
            ],
            TracedState::Scheduled,
            "scheduled until 2031-02-03T12:08:20Z".into(),
        ),
        (
            vec![ahead(10, 7)],
            TracedState::Backlog,
            "in the backlog: 7 messages before it; relay r1 leads".into(),
        ),
        (
            vec![dealt_with(10)],
            TracedState::Unaccounted,
            "nobody knows: the cursor has passed it, and there is neither a receipt nor a hold".into(),
        ),
    ] {
        let (found, waits, _) = waits(alive(), fact);
        assert_eq!((found, waits), (state, said));
    }
    let parked = waits(alive(), vec![held(10, json!({}))]).2;
    assert_eq!(parked, outboxd_core::HoldReason::TooLarge.explained().remedy);
}

#[test]
fn that_nobody_leads_is_said_with_who_led_last_and_since_when() {
    let said = |change| waits(standing(change), vec![ahead(10, 0)]).1;
    assert_eq!(
        said(json!({ "alive": false, "ended_at": text(60) })),
        "the relay has no leader since 2031-02-03T12:01:00Z (relay r1 ended its term 4 in order); in the backlog: no message before it"
    );
    assert_eq!(
        said(json!({ "alive": false })),
        "the relay has no leader: relay r1 (term 4) ended without a word, the last sign of it is of 2031-02-03T12:01:39Z; in the \
         backlog: no message before it"
    );
    assert_eq!(
        said(json!({ "alive": false, "relay": null })),
        "no relay has led this outbox yet; in the backlog: no message before it"
    );
    // A leader that settles nothing although something waits.
    assert_eq!(
        said(json!({ "settled_at": text(20), "outage_at": text(90) })),
        "in the backlog: no message before it; relay r1 leads and settled last at 2031-02-03T12:00:20Z, and Kafka did not answer at \
         2031-02-03T12:01:30Z"
    );
}

#[test]
fn what_is_final_waits_for_nothing() {
    let action = |kind: &str| json!({ "action": { "seq": 10, "at": text(60), "kind": kind, "who": "ada", "why": "no use" } });
    for (facts, state) in [
        (vec![dealt_with(10), action("discard")], TracedState::Discarded),
        (vec![dealt_with(10), action("cancel")], TracedState::Cancelled),
        (
            vec![
                json!({ "cancelled": { "seq": 10, "cancelled_at": text(20), "who": "app", "why": "withdrawn" } }),
                ahead(10, 0),
            ],
            TracedState::Cancelled,
        ),
    ] {
        let message = the_only(gathered(standing(json!({})), vec![intent(10)], facts));
        assert_eq!((message.state, &message.waits_for), (state, &None));
        assert!(message.state.is_final());
    }
    let purged = standing(json!({ "receipts_since": text(30) }));
    assert_eq!(waits(purged, vec![dealt_with(10)]).0, TracedState::ReceiptPurged);
}

#[test]
fn a_timeline_tells_every_step_in_order_with_the_time_between() {
    let facts = vec![
        dealt_with(10),
        json!({ "was_held": { "seq": 10, "state": "retry", "reason": "too_large", "attempts": 1, "failures": [{ "at": text(20), "error": "MessageSizeTooLarge" }],
            "held_at": text(20), "ended_at": text(61), "dead_letter": "dlq[0]@3" } }),
        json!({ "action": { "seq": 10, "at": text(40), "kind": "edit", "who": "ada", "why": "mended", "details": { "changed": ["headers"] } } }),
        json!({ "action": { "seq": 10, "at": text(50), "kind": "retry", "who": "ada", "why": "again" } }),
    ];
    let mut gathered = gathered(standing(json!({})), vec![intent(10)], facts);
    gathered.landed = vec![landed(10, 4, Some(9), 80), landed(10, 4, None, 60)];
    gathered.replays = vec![
        serde_json::from_value(json!({ "replay": 9, "who": "eve", "why": "backfill", "requested_at": text(70), "to_topic": null })).unwrap(),
    ];
    gathered.claims = vec![
        serde_json::from_value(json!({ "id": id(10), "consumer": "shipping", "claimed_at": text(62), "topic": "orders", "partition": 2,
            "record_offset": 17, "duplicates": 2, "last_duplicate_at": text(90) })).unwrap(),
    ];
    let message = the_only(gathered);
    assert_eq!(
        kinds(&message),
        [
            StepKind::Written,
            StepKind::AttemptFailed,
            StepKind::Held,
            StepKind::Parked,
            StepKind::Action,
            StepKind::Action,
            StepKind::Acknowledged,
            StepKind::Settled,
            StepKind::Claimed,
            StepKind::ReplayAsked,
            StepKind::Replayed,
            StepKind::Settled,
            StepKind::DuplicateAbsorbed,
        ]
    );
    let text: Vec<&str> = message.timeline.iter().map(|step| step.text.as_str()).collect();
    assert_eq!(text[4], "edited by ada (headers): mended");
    assert_eq!(text[6], "acknowledged at orders[2]@17");
    assert_eq!(text[9], "replay 9 asked for by eve: backfill");
    assert_eq!(text[12], "2 further copies absorbed by consumer shipping, the last one now");
    assert_eq!(message.timeline[1].after_ms, Some(10_000));
    assert_eq!((message.state, message.delivered_after_ms), (TracedState::Delivered, Some(50_000)));
}

#[test]
fn a_copy_is_explained_only_by_what_happened_while_the_message_was_unsettled() {
    let term = |led: i64, next: i64, high: i64| json!({ "term": { "epoch": 3, "relay": "r0", "led_at": text(led), "next_led_at": text(next), "next_high": high } });
    let rewind = |second: i64, first: i64, last: i64| json!({ "rewind": { "at": text(second), "epoch": 4, "relay": "r1", "reason": "outage", "seq_first": first, "seq_last": last, "messages": 2 } });
    let explained = |fact: Value| {
        let mut gathered = gathered(standing(json!({})), vec![intent(10)], vec![dealt_with(10), fact]);
        gathered.landed = vec![landed(10, 4, None, 30)];
        kinds(&the_only(gathered)).iter().any(|kind| matches!(kind, StepKind::TermEnded | StepKind::Rewound))
    };
    assert!(explained(term(0, 20, 9)));
    assert!(!explained(term(0, 8, 5)), "over before it was written");
    assert!(!explained(term(0, 40, 20)), "it was settled before");
    assert!(!explained(term(0, 20, 15)), "the next term began above it");
    assert!(explained(rewind(20, 8, 12)));
    assert!(!explained(rewind(20, 11, 12)), "it was not among them");
    assert!(!explained(rewind(40, 8, 12)), "it was settled before");
}

#[test]
fn of_a_key_the_last_messages_are_kept_and_of_anything_else_the_first() {
    let kept = |by: &By, room| {
        let mut found: Vec<Intent> =
            (1..=3).map(|seq| serde_json::from_value(intent(seq)).unwrap()).collect();
        gather::keep(by, &mut found, room);
        found.into_iter().map(|intent| intent.seq.0).collect::<Vec<_>>()
    };
    let key = By::Key { key: "k".into(), topic: None };
    assert_eq!(kept(&key, 2), [2, 3]);
    assert_eq!(kept(&key, 4), [1, 2, 3]);
    assert_eq!(kept(&By::Correlation("req".into()), 2), [1, 2]);
}

#[test]
fn a_term_that_ended_explains_a_copy_of_a_held_message_only_if_an_attempt_may_have_been_under_way() {
    let term = |epoch: i64, next: i64| json!({ "term": { "epoch": epoch, "relay": "r1", "led_at": text(0), "next_led_at": text(next), "next_high": 900 } });
    let failed = |second: i64| json!([{ "at": text(second), "error": "Boom" }]);
    let told = |state: &str, failures: Value, next: i64| {
        let fact = held(10, json!({ "state": state, "held_at": text(20), "failures": failures }));
        let message = the_only(gathered(
            standing(json!({})),
            vec![intent(10)],
            vec![dealt_with(10), fact, term(3, next)],
        ));
        message.timeline.into_iter().find(|step| step.kind == StepKind::TermEnded).map(|step| step.text)
    };
    assert_eq!(
        told("retry", failed(20), 40).unwrap(),
        "term 3 of relay r1 ended without a word; this one was out of order then, held or committed late: if it was under way, it \
         may be there twice"
    );
    assert!(told("topic", failed(20), 40).is_some());
    assert!(told("parked", failed(60), 40).is_some(), "it was tried until it was parked");
    assert_eq!(told("parked", failed(30), 40), None, "it was parked");
    assert_eq!(told("behind", json!([]), 40), None, "it was never tried");
    assert_eq!(told("retry", failed(20), 15), None, "it was not held yet");

    // What was behind is published in the end, and only the term before that one can have begun to.
    let was_behind = json!({ "was_held": { "seq": 10, "state": "behind", "reason": "behind", "attempts": 0, "failures": [],
        "held_at": text(20), "ended_at": text(81), "dead_letter": null } });
    let facts = vec![dealt_with(10), was_behind, term(1, 30), term(2, 40), term(3, 50)];
    let mut gathered = gathered(standing(json!({})), vec![intent(10)], facts);
    gathered.landed = vec![landed(10, 4, None, 80)];
    let ended: Vec<OffsetDateTime> = the_only(gathered)
        .timeline
        .into_iter()
        .filter(|step| step.kind == StepKind::TermEnded)
        .map(|step| step.at)
        .collect();
    assert_eq!(ended, [at(50)]);
}

#[test]
fn that_earlier_attempts_are_not_kept_is_said_if_there_were_any() {
    let told = |attempts: u32, kept: i64| {
        let failures: Vec<Value> =
            (0..kept).map(|n| json!({ "at": text(50 + n), "error": "Boom" })).collect();
        let fact = held(10, json!({ "state": "retry", "attempts": attempts, "failures": failures }));
        let message = the_only(gathered(standing(json!({})), vec![intent(10)], vec![dealt_with(10), fact]));
        let failed = message.timeline.into_iter().filter(|step| step.kind == StepKind::AttemptFailed);
        failed.map(|step| step.text).collect::<Vec<_>>()
    };
    let long = told(12, 10);
    assert_eq!((long.len(), long[0].as_str()), (11, "earlier attempts are not kept"));
    assert_eq!(told(10, 10).len(), 10);
    assert_eq!(told(2, 1), ["attempt failed: Boom"], "one ended with its relay");
}

#[test]
fn messages_stand_behind_what_caused_them_and_a_circle_ends() {
    let caused = |seq: i64, by: i64| {
        let mut one = intent(seq);
        merge(&mut one, json!({ "causation_id": id(u128::try_from(by).unwrap()) }));
        one
    };
    let intents = vec![
        intent(1),
        intent(2),
        caused(3, 1),
        caused(4, 2),
        caused(5, 3),
        caused(6, 6),
        caused(7, 8),
        caused(8, 7),
    ];
    let traced = tell(gathered(standing(json!({})), intents, Vec::new()));
    let tree: Vec<(i64, usize)> = traced.messages.iter().map(|one| (one.intent.seq.0, one.depth)).collect();
    assert_eq!(tree, [(1, 0), (3, 1), (5, 2), (2, 0), (4, 1), (6, 0), (7, 0), (8, 1)]);
}

#[test]
fn a_record_is_the_settled_copy_or_another_one() {
    let noted = |offset: i64, landings: Vec<Landed>| {
        let mut gathered = gathered(standing(json!({})), vec![intent(10)], vec![dealt_with(10)]);
        gathered.landed = landings;
        gathered.place = Some(Place { topic: "orders".into(), partition: 2, offset });
        tell(gathered).notes.remove(0)
    };
    assert_eq!(
        noted(17, vec![landed(10, 4, None, 30)]),
        "the record at orders[2]@17 is this message, as receipt 812 says"
    );
    assert!(noted(16, vec![landed(10, 4, None, 30)]).contains("another copy"));
    assert!(noted(16, Vec::new()).contains("not settled"));
}

#[test]
fn a_record_that_no_receipt_names_is_a_dead_letter_or_older_than_the_receipts_or_of_the_other_message_of_its_id()
 {
    let noted = |mut gathered: Gathered, topic: &str, offset: i64| {
        gathered.place = Some(Place { topic: topic.into(), partition: 2, offset });
        tell(gathered).notes.remove(0)
    };
    let parked = || held(10, json!({ "dead_letter": "dlq[2]@3" }));
    let is_parked = || gathered(standing(json!({})), vec![intent(10)], vec![dealt_with(10), parked()]);
    assert_eq!(
        noted(is_parked(), "dlq", 3),
        "the record at dlq[2]@3 is the dead-letter copy of this message, made when it was parked"
    );
    let mut delivered_later = gathered(
        standing(json!({})),
        vec![intent(10)],
        vec![
            dealt_with(10),
            json!({ "was_held": { "seq": 10, "state": "retry", "reason": "too_large", "attempts": 1, "failures": [], "held_at": text(20),
                "ended_at": text(61), "dead_letter": "dlq[2]@3" } }),
        ],
    );
    delivered_later.landed = vec![landed(10, 4, None, 60)];
    assert!(noted(delivered_later, "dlq", 3).contains("is the dead-letter copy"));
    assert!(noted(is_parked(), "orders", 3).contains("not settled"));

    let mut purged =
        gathered(standing(json!({ "receipts_since": text(30) })), vec![intent(10)], vec![dealt_with(10)]);
    purged.landed = vec![landed(10, 4, Some(9), 60)];
    assert!(noted(purged, "orders", 3).contains("receipts of that time are purged"));

    let mut again = intent(11);
    merge(&mut again, json!({ "id": id(10) }));
    let mut twice =
        gathered(standing(json!({})), vec![intent(10), again], vec![dealt_with(10), dealt_with(11)]);
    twice.landed = vec![Landed { offset: 5, ..landed(10, 4, None, 30) }, landed(11, 4, None, 31)];
    assert_eq!(noted(twice, "orders", 17), "the record at orders[2]@17 is this message, as receipt 812 says");
}

#[test]
fn a_transaction_that_hides_an_intent_is_named() {
    let open = |change: Value| {
        let mut open = json!({ "xid": "8123", "backend": 4711, "application": "billing", "role": "app", "since": text(3),
            "state": "idle in transaction", "prepared": null, "writes_outbox": true });
        merge(&mut open, change);
        open
    };
    let notes = |xid: Option<u64>, status: Option<&str>, open: Vec<Value>| {
        let mut gathered = gathered(standing(json!({})), Vec::new(), Vec::new());
        let transactions = serde_json::from_value(json!({ "status": status, "open": open })).unwrap();
        gathered.transactions = Some((xid, Some(transactions)));
        tell(gathered).notes.join("\n")
    };
    assert_eq!(
        notes(Some(8123), Some("in progress"), vec![open(json!({}))]),
        "its transaction 8123 is open since 2031-02-03T12:00:03Z in backend 4711 of application billing (idle in transaction, role \
         app); it has written to the outbox, and nothing of it is seen before it commits"
    );
    let unseen = notes(None, None, vec![open(json!({ "since": null, "state": null }))]);
    assert!(unseen.contains("it may be in a transaction that is open"), "{unseen}");
    assert!(unseen.contains("shown to members of pg_read_all_stats"), "{unseen}");
    let prepared = notes(None, None, vec![open(json!({ "backend": null, "prepared": "order-17" }))]);
    assert!(prepared.contains("is prepared since 2031-02-03T12:00:03Z as \"order-17\""), "{prepared}");
    assert!(notes(Some(1), Some("aborted"), Vec::new()).contains("was rolled back"));
    assert!(notes(Some(1), Some("future"), Vec::new()).contains("no transaction 1 has begun"));
    assert!(notes(None, None, Vec::new()).contains("no open transaction has written to the outbox"));
    let mut hidden = gathered(standing(json!({})), Vec::new(), Vec::new());
    hidden.transactions = Some((None, None));
    let said = tell(hidden).notes.join("\n");
    assert!(said.contains("may be in a transaction that has not committed"), "{said}");
}
