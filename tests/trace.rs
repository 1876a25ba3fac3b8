//! "What happened to this transaction?", asked of the real program about a real database and a real broker.

use std::os::unix::process::ExitStatusExt as _;
use std::time::Duration;

use outboxd_testkit::kafka;
use outboxd_testkit::postgres::Database;
use outboxd_testkit::relay::{Setup, eventually};
use outboxd_testkit::shared;
use serde_json::Value;
use sqlx::{Connection, PgConnection, SqliteConnection};
use uuid::Uuid;

use crate::grants::{Granted, granted};
use crate::inbox::inbox_migrator;
use crate::migrations::{run, text};
use crate::support::{BINARY, Place, SOON};
use crate::verdicts::set_limit;

mod plans;

const SIGABRT: i32 = 6;
const TRACE_ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

/// What one intent may say of itself.
#[derive(Clone, Default)]
struct Says<'a> {
    key: Option<&'a str>,
    correlation: Option<&'a str>,
    causation: Option<String>,
    extra: &'a str,
}

/// Emits with named arguments; its id.
async fn emit(connection: &mut PgConnection, topic: &str, says: &Says<'_>) -> Uuid {
    let mut arguments = format!("topic => '{topic}', payload => 'secret'::text");
    for (name, value) in
        [("key", says.key), ("correlation_id", says.correlation), ("causation_id", says.causation.as_deref())]
    {
        if let Some(value) = value {
            arguments.push_str(&format!(", {name} => '{value}'"));
        }
    }
    arguments.push_str(says.extra);
    text(connection, &format!("select outbox.emit({arguments})")).await.unwrap().parse().unwrap()
}

/// The answer as JSON.
async fn traced(setup: &Setup, arguments: &[&str]) -> Value {
    setup.run_json(&[&["trace", "--output", "json"], arguments].concat()).await
}

/// The message of this id in an answer.
fn message<'a>(answer: &'a Value, id: &Uuid) -> &'a Value {
    let id = id.to_string();
    let messages = answer["messages"].as_array().unwrap();
    messages
        .iter()
        .find(|message| message["id"] == *id)
        .unwrap_or_else(|| panic!("{id} is not in {answer:#}"))
}

/// The only message of a trace by its id.
async fn about(setup: &Setup, id: &Uuid) -> Value {
    let answer = traced(setup, &["--message-id", &id.to_string()]).await;
    message(&answer, id).clone()
}

/// Waits until a message is in a state, and returns it.
async fn in_state(setup: &Setup, id: &Uuid, state: &str) -> Value {
    eventually(&format!("{id} is {state}"), SOON, async || {
        let message = about(setup, id).await;
        (message["state"] == state).then_some(message)
    })
    .await
}

fn kinds(message: &Value) -> Vec<&str> {
    steps(message).iter().map(|step| step["kind"].as_str().unwrap()).collect()
}

fn steps(message: &Value) -> &Vec<Value> {
    message["timeline"].as_array().unwrap()
}

/// The text of the first line of a kind.
fn line<'a>(message: &'a Value, kind: &str) -> &'a str {
    let step = steps(message).iter().find(|step| step["kind"] == kind);
    step.unwrap_or_else(|| panic!("no {kind} in {message:#}"))["text"].as_str().unwrap()
}

fn waits(message: &Value) -> &str {
    message["waits_for"].as_str().unwrap_or_else(|| panic!("waits for nothing: {message:#}"))
}

async fn place(purpose: &str) -> (Database, Place) {
    let database = Database::create().await;
    let place = Place::install(&database.url(), &shared::kafka(), purpose).await;
    (database, place)
}

#[tokio::test]
async fn a_delivered_message_is_found_by_every_id_that_it_has() {
    let (database, place) = place("ids").await;
    let mut connection = database.connect().await;
    let extra = format!(
        ", traceparent => '00-{TRACE_ID}-00f067aa0ba902b7-01', idempotency_key => 'debit-7', headers => '{{\"a\": \"b\"}}'"
    );
    let says =
        Says { key: Some("account-7"), correlation: Some("req-8f2e"), extra: &extra, ..Says::default() };
    let id = emit(&mut connection, &place.topic, &says).await;
    emit(&mut connection, &place.topic, &Says { key: Some("other"), ..Says::default() }).await;
    let xid =
        text(&mut connection, &format!("select xid from outbox.message where id = '{id}'")).await.unwrap();
    let mut relay = place.setup.clone().set("relay.instance", "r1").start().await;
    let delivered = in_state(&place.setup, &id, "delivered").await;

    let copy = &delivered["copies"][0];
    assert_eq!(
        (&copy["topic"], &copy["relay"], &copy["epoch"]),
        (&place.topic.clone().into(), &"r1".into(), &1.into())
    );
    assert_eq!(kinds(&delivered), ["written", "acknowledged", "settled"]);
    assert!(line(&delivered, "written").contains(&format!("transaction {xid}")), "{delivered:#}");
    assert!(line(&delivered, "settled").contains("term 1, relay r1"), "{delivered:#}");
    assert!(delivered["delivered_after_ms"].as_i64().unwrap() < 30_000);
    assert_eq!((&delivered["waits_for"], &delivered["contents"]), (&Value::Null, &Value::Null));

    let record = format!("{}/{}@{}", place.topic, copy["partition"], copy["offset"]);
    for asked in [
        &["req-8f2e"][..],
        &[&id.to_string()],
        &[TRACE_ID],
        &[&format!("00-{TRACE_ID}-00f067aa0ba902b7-01")],
        &["debit-7"],
        &[&record],
        &["--correlation-id", "req-8f2e"],
        &["--trace-id", TRACE_ID],
        &["--idempotency-key", "debit-7"],
        &["--xid", &xid],
        &["--key", "account-7"],
        &["--key", "account-7", "--topic", &place.topic],
    ] {
        let answer = traced(&place.setup, asked).await;
        assert_eq!(answer["messages"].as_array().unwrap().len(), 1, "{asked:?}: {answer:#}");
        assert_eq!(answer["messages"][0]["id"], id.to_string(), "{asked:?}");
    }
    let answer = traced(&place.setup, &[&record]).await;
    let note = answer["notes"][0].as_str().unwrap();
    assert!(note.contains("is this message, as receipt"), "{note}");

    let with_payload = traced(&place.setup, &["debit-7", "--payload"]).await;
    let contents = &with_payload["messages"][0]["contents"];
    assert_eq!((&contents["key"], &contents["payload"]), (&"account-7".into(), &"secret".into()));
    assert_eq!(contents["headers"]["a"], "b");
    let people = place.setup.run_ok(&["trace", "req-8f2e"]).await;
    for expected in ["1 message, 1 delivered", "acknowledged at", "after it was written"] {
        assert!(people.contains(expected), "{people}");
    }
    assert!(!people.contains("secret") && !people.contains("account-7"), "{people}");

    let nothing = traced(&place.setup, &["no-such-id"]).await;
    assert!(nothing["notes"][0].as_str().unwrap().contains("no intent is to be seen"), "{nothing:#}");
    let beyond = place.setup.run(&["trace", &format!("{}/0@1000", place.topic)]).await;
    assert_eq!(beyond.status.code(), Some(64));
    assert!(relay.terminate(SOON).await.success());
}

#[tokio::test]
async fn a_correlation_id_shows_the_tree_of_what_caused_what() {
    let (database, place) = place("tree").await;
    let mut connection = database.connect().await;
    let correlated = Says { correlation: Some("req-1"), ..Says::default() };
    let first = emit(&mut connection, &place.topic, &correlated).await;
    let caused_by = |id: &Uuid| Says { causation: Some(id.to_string()), ..correlated.clone() };
    let second = emit(&mut connection, &place.topic, &caused_by(&first)).await;
    let third = emit(&mut connection, &place.topic, &caused_by(&second)).await;
    // Consequences are followed into another correlation too.
    let elsewhere =
        Says { causation: Some(first.to_string()), correlation: Some("req-2"), ..Says::default() };
    let fourth = emit(&mut connection, &place.topic, &elsewhere).await;
    emit(&mut connection, &place.topic, &Says::default()).await;

    let tree = |answer: &Value| -> Vec<(String, u64, bool)> {
        let messages = answer["messages"].as_array().unwrap();
        let row = |m: &Value| {
            (
                m["id"].as_str().unwrap().to_owned(),
                m["depth"].as_u64().unwrap(),
                m["asked"].as_bool().unwrap(),
            )
        };
        messages.iter().map(row).collect()
    };
    let row = |id: &Uuid, depth, asked| (id.to_string(), depth, asked);
    let answer = traced(&place.setup, &["req-1"]).await;
    assert_eq!(
        tree(&answer),
        [row(&first, 0, true), row(&second, 1, true), row(&third, 2, true), row(&fourth, 1, false)]
    );
    let answer = traced(&place.setup, &[&third.to_string()]).await;
    assert_eq!(
        tree(&answer),
        [row(&first, 0, false), row(&second, 1, false), row(&third, 2, true)],
        "a message stands behind its causes"
    );
    let some = traced(&place.setup, &["req-1", "--limit", "2"]).await;
    assert_eq!((some["messages"].as_array().unwrap().len(), &some["more"]), (2, &true.into()));
    let people = place.setup.run_ok(&["trace", "req-1"]).await;
    assert!(people.contains(&format!("  \u{2514} {third}")), "{people}");
}

#[tokio::test]
async fn what_an_undelivered_message_waits_for_is_said() {
    let (database, place) = place("waits").await;
    let mut connection = database.connect().await;
    let ordinary = emit(&mut connection, &place.topic, &Says::default()).await;
    let unseen = about(&place.setup, &ordinary).await;
    assert_eq!(unseen["state"], "backlog");
    assert_eq!(waits(&unseen), "no relay has led this outbox yet; in the backlog: no message before it");

    let missing = kafka::unique_topic("missing");
    let of_missing = emit(&mut connection, &missing, &Says::default()).await;
    let keyed = Says { key: Some("k"), ..Says::default() };
    let parked =
        emit(&mut connection, &place.topic, &Says { extra: ", partition => 99", ..keyed.clone() }).await;
    let behind = emit(&mut connection, &place.topic, &keyed).await;
    let later = Says { extra: ", deliver_after => now() + interval '1 day'", ..Says::default() };
    let scheduled = emit(&mut connection, &place.topic, &later).await;
    let withdrawn = emit(&mut connection, &place.topic, &later).await;
    let mut relay = place.setup.clone().set("relay.instance", "r1").start().await;
    in_state(&place.setup, &ordinary, "delivered").await;

    let held = in_state(&place.setup, &of_missing, "held").await;
    assert!(waits(&held).starts_with(&format!("topic {missing} does not exist (held since ")), "{held:#}");
    let held = in_state(&place.setup, &parked, "held").await;
    assert!(
        waits(&held).starts_with("parked since ") && waits(&held).contains("no_such_partition"),
        "{held:#}"
    );
    assert!(held["remedy"].as_str().unwrap().contains("--no-partition"), "{held:#}");
    let held = in_state(&place.setup, &behind, "held").await;
    assert_eq!(waits(&held), format!("behind parked message {parked} of the same key (no_such_partition)"));
    let waiting = in_state(&place.setup, &scheduled, "scheduled").await;
    assert!(waits(&waiting).starts_with("scheduled until "), "{waiting:#}");
    run(&mut connection, &format!("select outbox.cancel('{withdrawn}', 'order withdrawn')")).await.unwrap();
    let taken_back = about(&place.setup, &withdrawn).await;
    assert_eq!((&taken_back["state"], &taken_back["waits_for"]), (&"cancelled".into(), &Value::Null));
    assert!(line(&taken_back, "taken_back").contains("order withdrawn"), "{taken_back:#}");

    assert!(relay.terminate(SOON).await.success());
    let ordinary = emit(&mut connection, &place.topic, &Says::default()).await;
    let waiting = about(&place.setup, &ordinary).await;
    assert!(
        waits(&waiting).starts_with("the relay has no leader since ")
            && waits(&waiting).contains("(relay r1 ended its term 1 in order)"),
        "{waiting:#}"
    );
    let mut next = place.setup.clone().set("relay.instance", "r2").start().await;
    in_state(&place.setup, &ordinary, "delivered").await;
    next.kill_9().await;
    let ordinary = emit(&mut connection, &place.topic, &Says::default()).await;
    let killed = eventually("the lock of the killed one is free", SOON, async || {
        let waiting = about(&place.setup, &ordinary).await;
        waits(&waiting).starts_with("the relay has no leader: ").then_some(waiting)
    })
    .await;
    assert!(waits(&killed).contains("relay r2 (term 2) ended without a word"), "{killed:#}");
    let held = about(&place.setup, &of_missing).await;
    assert!(
        waits(&held).contains("does not exist") && waits(&held).contains("; and the relay has no leader")
    );
}

/// Also: Kafka's own place of either copy leads to the message, and only one of them is confirmed.
#[tokio::test]
async fn a_copy_that_a_crash_made_is_told_with_the_term_that_ended_without_a_word() {
    let (database, place) = place("crash-copy").await;
    let mut connection = database.connect().await;
    let id = emit(&mut connection, &place.topic, &Says { key: Some("k"), ..Says::default() }).await;
    let mut crashing =
        place.setup.clone().set("relay.instance", "r1").variable("OUTBOXD_FAILPOINT", "settling:1").spawn();
    assert_eq!(crashing.ended(SOON).await.signal(), Some(SIGABRT));
    let later = emit(&mut connection, &place.topic, &Says::default()).await;
    let mut relay = place.setup.clone().set("relay.instance", "r2").start().await;
    let delivered = in_state(&place.setup, &id, "delivered").await;
    assert_eq!(kinds(&delivered), ["written", "term_ended", "acknowledged", "settled"], "{delivered:#}");
    assert!(
        line(&delivered, "term_ended").contains("term 1 of relay r1 ended without a word"),
        "{delivered:#}"
    );
    assert_eq!(delivered["copies"].as_array().unwrap().len(), 1);
    let later = in_state(&place.setup, &later, "delivered").await;
    assert!(!kinds(&later).is_empty());

    let records = kafka::read_all(&place.bootstrap, &place.topic).await;
    let copies: Vec<_> = records.iter().filter(|record| record.id() == id).collect();
    assert_eq!(copies.len(), 2, "it was published twice");
    let mut confirmed = 0;
    for copy in copies {
        let record = format!("{}/{}@{}", place.topic, copy.partition, copy.offset);
        let answer = traced(&place.setup, &[&record]).await;
        let note = answer["notes"][0].as_str().unwrap();
        confirmed += u32::from(note.contains("is this message, as receipt"));
        assert!(note.contains("as receipt") || note.contains("is another copy of this message"), "{note}");
    }
    assert_eq!(confirmed, 1);
    assert!(relay.terminate(SOON).await.success());
}

/// A batch that is refused for one of its messages is tried one by one: what Kafka had taken of the others comes twice.
#[tokio::test]
async fn a_return_to_the_settled_cursor_within_a_term_is_told() {
    let (database, place) = place("rewind-copy").await;
    let mut connection = database.connect().await;
    // The broker weighs a batch as it comes, and this one would weigh next to nothing.
    let setup = place.setup.clone().set("relay.instance", "r1").set("kafka.compression", "none");
    let mut relay = setup.variable("OUTBOXD__KAFKA__PROPERTIES__LINGER_MS", 50).start().await;
    let before = emit(&mut connection, &place.topic, &Says::default()).await;
    in_state(&place.setup, &before, "delivered").await;
    set_limit(&place.topic, "20000").await;
    run(
        &mut connection,
        &format!(
            "insert into outbox.message (topic, key, payload, correlation_id)
             select '{}', 'k' || i % 10, convert_to(repeat('x', case when i = 100 then 50000 else 100 end), 'UTF8'), 'batch'
             from generate_series(1, 200) i",
            place.topic
        ),
    )
    .await
    .unwrap();
    let told = eventually("a message of the batch is told of", SOON, async || {
        let answer = traced(&place.setup, &["batch", "--limit", "300"]).await;
        let messages = answer["messages"].as_array().unwrap();
        let all_dealt_with = messages.iter().all(|message| message["state"] != "backlog");
        let rewound = messages.iter().find(|message| kinds(message).contains(&"rewound"))?;
        all_dealt_with.then(|| line(rewound, "rewound").to_owned())
    })
    .await;
    let expected = "relay r1 (term 1) went back to the settled cursor: a message failed in company and was to be tried alone";
    assert!(told.starts_with(expected), "{told}");
    assert!(!kinds(&about(&place.setup, &before).await).contains(&"rewound"));
    assert!(relay.terminate(SOON).await.success());
}

#[tokio::test]
async fn what_operators_did_to_a_message_is_told_with_who_and_why() {
    let (database, place) = place("operators").await;
    let mut connection = database.connect().await;
    let wrong = Says { key: Some("k"), extra: ", partition => 99", ..Says::default() };
    let mended = emit(&mut connection, &place.topic, &wrong).await;
    let given_up = emit(&mut connection, &place.topic, &Says { key: Some("l"), ..wrong.clone() }).await;
    let mut relay = place.setup.start().await;
    in_state(&place.setup, &given_up, "held").await;
    let by = |verb: &'static str, id: &Uuid, why: &'static str, more: &[&'static str]| {
        let mut arguments = vec!["held".to_owned(), verb.to_owned(), id.to_string()];
        arguments.extend(["--reason", why, "--as", "ada"].iter().chain(more).map(|text| (*text).to_owned()));
        arguments
    };
    for arguments in [
        by("edit", &mended, "it was the wrong one", &["--no-partition"]),
        by("retry", &mended, "and again", &[]),
        by("discard", &given_up, "of no use", &[]),
    ] {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        place.setup.run_ok(&arguments).await;
    }
    let delivered = in_state(&place.setup, &mended, "delivered").await;
    assert_eq!(
        kinds(&delivered),
        ["written", "attempt_failed", "held", "action", "action", "acknowledged", "settled"],
        "{delivered:#}"
    );
    let told: Vec<&str> = steps(&delivered).iter().map(|step| step["text"].as_str().unwrap()).collect();
    assert!(told[1].contains("partition 99 does not exist"), "{told:?}");
    assert!(told[2].contains("no_such_partition"), "{told:?}");
    assert_eq!(told[3..5], ["edited by ada (partition): it was the wrong one", "retried by ada: and again"]);
    let discarded = in_state(&place.setup, &given_up, "discarded").await;
    assert_eq!(line(&discarded, "action"), "discarded by ada: of no use");
    assert_eq!(kinds(&discarded), ["written", "attempt_failed", "parked", "action"], "{discarded:#}");
    assert!(relay.terminate(SOON).await.success());
}

#[tokio::test]
async fn a_reader_traces_without_payloads_and_is_told_which_right_is_missing() {
    let Granted { database, reader, relay, .. } = granted().await;
    let mut connection = database.connect().await;
    let id: Uuid = text(&mut connection, "select id from outbox.message order by seq limit 1")
        .await
        .unwrap()
        .parse()
        .unwrap();
    let setup = |role: &str| Setup::new(BINARY, &database.url_as(role), &shared::kafka());
    let (reader, relay) = (setup(&reader), setup(&relay));
    let seen = about(&reader, &id).await;
    assert_eq!((&seen["state"], &seen["payload_bytes"]), (&"backlog".into(), &6.into()));
    let id = id.to_string();
    for (asked, missing) in [
        (&["trace", &id, "--payload"][..], "select (key) on outbox.message"),
        (&["trace", "--key", "k1"], "select (key) on outbox.message"),
    ] {
        let refused = reader.run(asked).await;
        assert_eq!(refused.status.code(), Some(78), "{asked:?}");
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(said.contains(missing) && said.contains("grant select"), "{said}");
    }
    run(&mut connection, "begin; select outbox.emit('orders', 'x'::text)").await.unwrap();
    let unseen = traced(&reader, &["not-there"]).await;
    let open = &unseen["transactions"][0];
    assert_eq!((&open["writes_outbox"], &open["since"]), (&true.into(), &Value::Null), "{unseen:#}");
    assert!(unseen["notes"].to_string().contains("pg_read_all_stats"), "{unseen:#}");
    let shown = traced(&relay, &[&id, "--payload"]).await;
    assert_eq!(shown["messages"][0]["contents"]["payload"], "secret");
}

#[tokio::test]
async fn a_transaction_that_is_open_or_was_rolled_back_is_said_to_be() {
    let (database, place) = place("open").await;
    let mut connection = database.connect().await;
    run(&mut connection, "set application_name = 'billing'; begin").await.unwrap();
    let id = emit(&mut connection, &place.topic, &Says::default()).await;
    let xid = text(&mut connection, "select pg_current_xact_id()").await.unwrap();
    let pid = text(&mut connection, "select pg_backend_pid()").await.unwrap();
    // A savepoint has a number of its own, and is no other transaction.
    run(&mut connection, "savepoint s; create temp table made_within_it (n int)").await.unwrap();

    let open = traced(&place.setup, &["--xid", &xid]).await;
    let note = open["notes"][0].as_str().unwrap();
    assert!(note.starts_with(&format!("its transaction {xid} is open since ")), "{note}");
    assert!(note.contains(&format!("in backend {pid} of application billing")), "{note}");
    assert!(note.contains("it has written to the outbox"), "{note}");
    let unseen = traced(&place.setup, &[&id.to_string()]).await;
    assert_eq!(unseen["transactions"].as_array().unwrap().len(), 1, "{unseen:#}");
    assert_eq!(unseen["transactions"][0]["xid"], xid);
    assert!(unseen["notes"].to_string().contains("it may be in a transaction that is open"), "{unseen:#}");

    run(&mut connection, "rollback").await.unwrap();
    let gone = traced(&place.setup, &["--xid", &xid]).await;
    assert!(gone["notes"][0].as_str().unwrap().contains("was rolled back"), "{gone:#}");
    let future = traced(&place.setup, &["--xid", "123456789012"]).await;
    assert!(future["notes"][0].as_str().unwrap().contains("no transaction 123456789012 has begun"));
    let unseen = traced(&place.setup, &[&id.to_string()]).await;
    assert!(unseen["notes"].to_string().contains("no open transaction has written"), "{unseen:#}");
}

/// The number of a younger one lies above the snapshot's xmax if nothing as young has ended.
#[tokio::test]
async fn of_several_open_transactions_each_is_said_to_be_open() {
    let (database, place) = place("two-open").await;
    let mut writers = Vec::new();
    for _ in 0..4 {
        let mut connection = database.connect().await;
        run(&mut connection, "begin").await.unwrap();
        emit(&mut connection, &place.topic, &Says::default()).await;
        let xid = text(&mut connection, "select pg_current_xact_id()").await.unwrap();
        writers.push((connection, xid));
    }
    let xids: Vec<&str> = writers.iter().map(|(_, xid)| xid.as_str()).collect();
    for xid in &xids {
        let answer = traced(&place.setup, &["--xid", xid]).await;
        let note = answer["notes"][0].as_str().unwrap();
        assert!(note.starts_with(&format!("its transaction {xid} is open since ")), "{answer:#}");
        let open = answer["transactions"].as_array().unwrap();
        let open: Vec<&str> = open.iter().map(|open| open["xid"].as_str().unwrap()).collect();
        assert_eq!(open, xids, "{answer:#}");
    }
}

#[tokio::test]
async fn a_watch_waits_for_what_is_not_there_yet_and_ends_with_the_delivery() {
    let (database, place) = place("watch").await;
    let mut connection = database.connect().await;
    let watching = place.setup.clone();
    let mut watch = tokio::task::JoinSet::new();
    watch.spawn(async move { watching.run_ok(&["trace", "req-9", "--watch"]).await });
    let watching = place.setup.clone();
    watch.spawn(async move { watching.run_ok(&["trace", "req-9", "--watch", "--output", "json"]).await });
    // Both have asked once, and found nothing: that is the last thing that is asked then.
    let asking = "select count(*) = 2 from pg_stat_activity
                  where application_name like 'outboxd operate%' and datname = current_database()
                    and state = 'idle' and query like '-- Is a transaction open%'";
    crate::migrations::wait_until(&mut connection, asking).await;
    let id =
        emit(&mut connection, &place.topic, &Says { correlation: Some("req-9"), ..Says::default() }).await;
    assert!(watch.try_join_next().is_none(), "it is not delivered");
    let mut relay = place.setup.start().await;
    while let Some(printed) = watch.join_next().await {
        let printed = printed.unwrap();
        assert!(printed.contains("nothing found") || printed.contains("\"messages\":[]"), "{printed}");
        let last = printed.lines().last().unwrap();
        if last.starts_with('{') {
            let last: Value = serde_json::from_str(last).unwrap();
            assert_eq!(message(&last, &id)["state"], "delivered");
        } else {
            assert_eq!(printed.matches("acknowledged at").count(), 1, "{printed}");
            assert!(last.contains("settled"), "{printed}");
        }
    }
    assert!(relay.terminate(SOON).await.success());
}

#[tokio::test]
async fn a_consumers_inbox_says_when_it_claimed_a_message_and_how_many_copies_it_absorbed() {
    let (database, place) = place("inboxes").await;
    let mut connection = database.connect().await;
    let id = emit(&mut connection, &place.topic, &Says::default()).await;
    let mut relay = place.setup.start().await;
    in_state(&place.setup, &id, "delivered").await;

    let shipping = Database::create().await;
    inbox_migrator(&shipping.url(), "received").apply().await.unwrap();
    let mut consumer = shipping.connect().await;
    for (name, copies) in [("shipping", 3), ("billing", 1)] {
        for _ in 0..copies {
            run(&mut consumer, &format!("select received.claim('{name}', '{id}', '{}', 1, 7)", place.topic))
                .await
                .unwrap();
        }
    }
    let directory = tempfile::tempdir().unwrap();
    let mail = format!("sqlite:{}", directory.path().join("mail.db").display());
    place.setup.run_ok(&["migrate", "--inbox", "--database-url", &mail]).await;
    let mut consumer = SqliteConnection::connect(&mail).await.unwrap();
    sqlx::query("insert into inbox_handled (consumer, id) values ('mail', ?)")
        .bind(id.to_string())
        .execute(&mut consumer)
        .await
        .unwrap();

    let shipping = shipping.url();
    let inboxes = ["--inbox-url", &shipping, "--inbox-url", &mail, "--inbox-schema", "received"];
    let id = id.to_string();
    let answer = traced(&place.setup, &[&[id.as_str()][..], &inboxes].concat()).await;
    let claims: Vec<(&str, u64)> = answer["messages"][0]["claims"]
        .as_array()
        .unwrap()
        .iter()
        .map(|claim| (claim["consumer"].as_str().unwrap(), claim["duplicates"].as_u64().unwrap()))
        .collect();
    assert_eq!(claims, [("shipping", 2), ("billing", 0), ("mail", 0)]);
    let message = &answer["messages"][0];
    assert_eq!(line(message, "claimed"), format!("claimed by consumer shipping ({}[1]@7)", place.topic));
    assert_eq!(
        line(message, "duplicate_absorbed"),
        "2 further copies absorbed by consumer shipping, the last one now"
    );
    assert!(relay.terminate(SOON).await.success());
}

#[tokio::test]
async fn a_message_whose_receipt_was_purged_is_not_called_lost() {
    let (database, place) = place("purged").await;
    let mut connection = database.connect().await;
    let id = emit(&mut connection, &place.topic, &Says::default()).await;
    let mut relay = place.setup.start().await;
    in_state(&place.setup, &id, "delivered").await;
    assert!(relay.terminate(SOON).await.success());
    run(&mut connection, "delete from outbox.receipt").await.unwrap();
    assert_eq!(about(&place.setup, &id).await["state"], "receipt_purged");
}

#[tokio::test]
async fn a_sqlite_outbox_is_traced_in_the_same_way() {
    let directory = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", directory.path().join("shop.db").display());
    let topic = kafka::unique_topic("trace-sqlite");
    kafka::create_topic(&shared::kafka(), &topic, 1, &[]).await;
    let setup = Setup::new(BINARY, &url, &shared::kafka())
        .set("relay.lead_session_ms", 1_000)
        .set("relay.instance", "r1");
    setup.run_ok(&["migrate"]).await;
    let mut connection = SqliteConnection::connect(&url).await.unwrap();
    let (as_blob, as_text, caused) = (Uuid::new_v4(), Uuid::new_v4(), Uuid::new_v4());
    let mut write = async |id: &Uuid, blob: bool, partition: Option<i32>, cause: Option<&Uuid>| {
        let statement = sqlx::query(
            "insert into outbox_message (id, topic, key, payload, partition, correlation_id, causation_id, traceparent, idempotency_key)
             values (?, ?, 'k', 'secret', ?, 'req-3', ?, ?, ?)",
        );
        let statement = if blob {
            statement.bind(id.as_bytes().to_vec())
        } else {
            statement.bind(id.to_string().to_uppercase())
        };
        statement
            .bind(&topic)
            .bind(partition)
            .bind(cause.map(Uuid::to_string))
            .bind(blob.then(|| format!("00-{TRACE_ID}-00f067aa0ba902b7-01")))
            .bind(blob.then_some("once"))
            .execute(&mut connection)
            .await
            .unwrap();
    };
    write(&as_blob, true, None, None).await;
    let unseen = about(&setup, &as_blob).await;
    assert!(waits(&unseen).starts_with("no relay has led"), "{unseen:#}");
    let mut crashing = setup.clone().variable("OUTBOXD_FAILPOINT", "settling:1").spawn();
    assert_eq!(crashing.ended(SOON).await.signal(), Some(SIGABRT));
    let mut relay = setup.clone().set("relay.instance", "r2").start().await;
    let delivered = in_state(&setup, &as_blob, "delivered").await;
    assert_eq!(kinds(&delivered), ["written", "term_ended", "acknowledged", "settled"], "{delivered:#}");
    write(&as_text, false, Some(99), Some(&as_blob)).await;
    write(&caused, false, None, Some(&as_text)).await;
    let held = in_state(&setup, &caused, "held").await;
    assert_eq!(waits(&held), format!("behind parked message {as_text} of the same key (no_such_partition)"));
    for asked in [&["req-3"][..], &["--key", "k", "--topic", &topic]] {
        let answer = traced(&setup, asked).await;
        let depths: Vec<u64> =
            answer["messages"].as_array().unwrap().iter().map(|m| m["depth"].as_u64().unwrap()).collect();
        assert_eq!(depths, [0, 1, 2], "{answer:#}");
    }
    for asked in [TRACE_ID, "once", &format!("{topic}/0@1")] {
        let answer = traced(&setup, &[asked]).await;
        assert_eq!(message(&answer, &as_blob)["asked"], true, "{asked}");
    }
    let payload = traced(&setup, &["once", "--payload"]).await;
    assert_eq!(message(&payload, &as_blob)["contents"]["payload"], "secret");
    let nothing = traced(&setup, &["no-such-id"]).await;
    assert!(nothing["notes"].to_string().contains("in a transaction that has not committed"), "{nothing:#}");
    let no_number = setup.run(&["trace", "--xid", "1"]).await;
    assert_eq!(no_number.status.code(), Some(78));
    assert!(relay.terminate(SOON).await.success());
}

/// A trace never makes anybody wait: it asks while the table is written to, and it holds no lock that a writer wants.
#[tokio::test]
async fn a_trace_waits_for_no_writer_and_keeps_none_waiting() {
    let (database, place) = place("busy").await;
    let mut connection = database.connect().await;
    let id = emit(&mut connection, &place.topic, &Says::default()).await;
    run(&mut connection, "begin; lock table outbox.message in exclusive mode").await.unwrap();
    let seen = tokio::time::timeout(Duration::from_secs(20), about(&place.setup, &id))
        .await
        .expect("it does not wait");
    assert_eq!(seen["state"], "backlog");
}
