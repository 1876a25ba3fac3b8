//! Replays: dispatched messages that are published again, on purpose, by the leader, beside the live ones.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt as _;
use std::time::Duration;

use outboxd_testkit::kafka::{self, Broker, Consumed};
use outboxd_testkit::postgres::Database;
use outboxd_testkit::relay::{Relay, Setup, eventually};
use outboxd_testkit::workload::Workload;
use outboxd_testkit::{checker, shared};
use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::outage::OUTAGE_LINES;
use crate::support::{BINARY, Place, SOON};

const REPLAY_HEADER: &str = "outbox-replay-id";

async fn run(connection: &mut PgConnection, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(connection).await.unwrap();
}

async fn number(connection: &mut PgConnection, sql: &str) -> i64 {
    sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_one(connection).await.unwrap()
}

/// So many intents for each of some keys, one key after the other, round and round.
async fn emit(place: &Place, messages: u32, keys: u32) {
    let mut connection = PgConnection::connect(&place.url).await.unwrap();
    let insert = format!(
        "insert into outbox.message (topic, key, payload, headers, correlation_id)
         select '{}', 'key-' || n % {keys}, convert_to('{{\"n\":' || n || '}}', 'UTF8'), '{{\"tenant\": \"42\"}}', 'request-' || n / 10
         from generate_series(0, {messages} - 1) n",
        place.topic
    );
    run(&mut connection, &insert).await;
}

async fn dispatched(relay: &mut Relay, messages: u32) {
    let all = f64::from(messages);
    relay.wait_until("history", SOON, |m| m.sum("outboxd_dispatched_total", &[]) >= all).await;
}

/// Starts a replay and returns its number.
async fn start(setup: &Setup, which: &[&str]) -> i64 {
    let arguments =
        [&["replay", "start", "--reason", "billing lost it", "--yes", "--output", "json"], which].concat();
    setup.run_json(&arguments).await["replay"].as_i64().unwrap()
}

async fn show(setup: &Setup, replay: i64) -> Value {
    setup.run_json(&["replay", "show", &replay.to_string(), "--output", "json"]).await
}

async fn is(setup: &Setup, replay: i64, state: &str) -> Value {
    eventually(&format!("replay {replay} is {state}"), SOON, async || {
        let shown = show(setup, replay).await;
        (shown["state"] == state).then_some(shown)
    })
    .await
}

fn by_replay(records: &[Consumed], replay: i64) -> Vec<&Consumed> {
    let number = replay.to_string();
    records.iter().filter(|record| record.header(REPLAY_HEADER) == Some(&number)).collect()
}

/// The payloads of each key, in the order of the partition.
fn by_key(records: &[&Consumed]) -> BTreeMap<Vec<u8>, Vec<Vec<u8>>> {
    let mut keys: BTreeMap<Vec<u8>, Vec<Vec<u8>>> = BTreeMap::new();
    for record in records {
        let payload = record.payload.as_deref().unwrap_or_default().to_vec();
        keys.entry(record.key.as_deref().unwrap_or_default().to_vec()).or_default().push(payload);
    }
    keys
}

/// Each condition means what it says, and the copies are the messages, in their order, with one header more.
#[tokio::test]
async fn what_each_condition_means_is_published_again_with_a_header_that_says_so() {
    let database = Database::create().await;
    let place = Place::install(&database.url(), &shared::kafka(), "replay").await;
    let mut connection = PgConnection::connect(&place.url).await.unwrap();
    let mut relay = place.setup.start().await;
    emit(&place, 60, 4).await;
    dispatched(&mut relay, 60).await;
    run(&mut connection, "select pg_sleep(0.01)").await;
    let until: String = sqlx::query_scalar(
        "select to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')",
    )
    .fetch_one(&mut connection)
    .await
    .unwrap();
    place.emit("key-0", "{\"n\":60}").await;
    dispatched(&mut relay, 61).await;

    let id: String = sqlx::query_scalar("select id::text from outbox.message where seq = 7")
        .fetch_one(&mut connection)
        .await
        .unwrap();
    let pattern = format!("{}*", &place.topic[..place.topic.len() - 2]);
    let cases: Vec<(Vec<&str>, u64)> = vec![
        (vec!["--id", &id, "--id", "0198c5a4-7a0e-7c9e-b9f1-3d6a0a6f2b11"], 1),
        (vec!["--correlation-id", "request-3"], 10),
        (vec!["--topic", &place.topic, "--key", "key-1"], 15),
        (vec!["--topic", &pattern], 61),
        (vec!["--to", &until], 60),
        (vec!["--from", &until], 1),
        (vec!["--from", "2001-01-01T00:00:00Z", "--to", &until, "--correlation-id", "request-5"], 10),
    ];
    let mut replays = Vec::new();
    for (which, messages) in &cases {
        let rehearsal = place
            .setup
            .run_json(&[&["replay", "start", "--dry-run", "--output", "json"], which.as_slice()].concat())
            .await;
        assert_eq!(rehearsal["total"].as_u64(), Some(*messages), "{which:?}: {rehearsal}");
        assert_eq!(rehearsal["sample"].as_array().unwrap().len() as u64, (*messages).min(10));
        assert!(rehearsal["replay"].is_null() && rehearsal["sample"][0]["payload"].is_null());
        replays.push((start(&place.setup, which).await, *messages));
    }
    for (replay, messages) in &replays {
        let shown = is(&place.setup, *replay, "done").await;
        assert_eq!(shown["published"].as_u64(), Some(*messages), "{shown}");
    }
    let records = kafka::read_all(&place.bootstrap, &place.topic).await;
    for ((replay, messages), (which, _)) in replays.iter().zip(&cases) {
        assert_eq!(by_replay(&records, *replay).len() as u64, *messages, "{which:?}");
    }
    let copy = by_replay(&records, replays[0].0)[0];
    assert_eq!((copy.header("id"), copy.header("tenant")), (Some(id.as_str()), Some("42")));
    // The rest is the checker's: same bytes, same headers but one, order of each key in each replay, receipts that are true.
    let account = place.account().await;
    account.assert_all_published(0);
    assert_eq!(account.replayed, 1 + 10 + 15 + 61 + 60 + 1 + 10);
    let metrics = relay.metrics().await.unwrap();
    assert_eq!(metrics.sum("outboxd_replayed_total", &[]), 158.0);
    assert_eq!(metrics.sum("outboxd_dispatched_total", &[]), 61.0);
    let audit = "select count(*) from outbox.operation where kind = 'replay' and why = 'billing lost it'";
    assert_eq!(number(&mut connection, audit).await, 7);
    relay.expect_no_surprises(&[]);
}

/// An operator who asks for much is asked whether it is meant, and one who asks for nothing is told.
#[tokio::test]
async fn a_replay_of_many_messages_wants_a_yes_and_one_of_none_is_refused() {
    let database = Database::create().await;
    let place = Place::install(&database.url(), &shared::kafka(), "replay-many").await;
    let mut relay = place.setup.start().await;
    emit(&place, 1_001, 7).await;
    dispatched(&mut relay, 1_001).await;
    let everything = ["replay", "start", "--topic", "*", "--reason", "backfill"];
    let refused = place.setup.run(&everything).await;
    assert_eq!(refused.status.code(), Some(64));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("1001 messages are many") && said.contains("--yes"), "{said}");
    for (which, words) in [
        (vec!["--correlation-id", "nobody"], "no dispatched message is meant, of 1001"),
        (vec![], "say which messages"),
        (vec!["--topic", "a*", "--key", "k"], "--key needs one topic"),
        (vec!["--topic", "a", "--to-topic", "__x"], "--to-topic"),
        (vec!["--from", "2031-01-02T00:00:00Z", "--to", "2031-01-01T00:00:00Z"], "--from is not before --to"),
        (vec!["--from", "yesterday"], "expected a time with its offset"),
    ] {
        let refused =
            place.setup.run(&[&["replay", "start", "--reason", "x"], which.as_slice()].concat()).await;
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(refused.status.code() == Some(64) && said.contains(words), "{which:?}: {said}");
    }
    assert_eq!(place.setup.run_json(&["replay", "list", "--output", "json"]).await, serde_json::json!([]));
    let replay = start(&place.setup, &["--topic", "*"]).await;
    let shown = is(&place.setup, replay, "done").await;
    assert_eq!((shown["published"].as_u64(), shown["named"].is_null()), (Some(1_001), true));
    let watched = place.setup.run_ok(&["replay", "show", &replay.to_string(), "--watch"]).await;
    assert!(watched.contains("1001 of 1001"), "{watched}");
}

/// D1, D3. The leader is killed in the middle; a standby goes on from what was written down, so the first copies of each key keep
/// their order and none is missing.
#[tokio::test]
async fn a_standby_goes_on_with_the_replay_of_a_killed_leader() {
    let database = Database::create().await;
    let place = Place::install(&database.url(), &shared::kafka(), "replay-killed").await;
    let mut relay = place.setup.start().await;
    emit(&place, 3_000, 11).await;
    dispatched(&mut relay, 3_000).await;
    assert!(relay.terminate(SOON).await.success());
    let mut leader = place.setup.clone().variable("OUTBOXD_FAILPOINT", "replayed:1800").spawn();
    leader.serving().await;
    leader.leads(SOON).await;
    let mut standby = place.setup.start().await;
    // More a second than it is killed at: what was published in the last second is not written down.
    let replay = start(&place.setup, &["--topic", "*", "--rate", "1000"]).await;
    assert!(leader.ended(SOON).await.signal().is_some());
    standby.leads(SOON).await;
    let shown = is(&place.setup, replay, "done").await;
    assert_eq!(shown["total"].as_u64(), Some(3_000));
    let records = kafka::read_all(&place.bootstrap, &place.topic).await;
    let (mut firsts, mut seen) = (Vec::new(), std::collections::HashSet::new());
    let copies = by_replay(&records, replay);
    for copy in &copies {
        if seen.insert(copy.id()) {
            firsts.push(*copy);
        }
    }
    assert_eq!(firsts.len(), 3_000, "everything at least once");
    assert!(copies.len() > 3_000, "the kill has cost copies: {}", copies.len());
    assert!(copies.len() < 3_000 + 1_800, "but not all of them again: {}", copies.len());
    let originals: Vec<&Consumed> =
        records.iter().filter(|record| record.header(REPLAY_HEADER).is_none()).collect();
    assert_eq!(by_key(&firsts), by_key(&originals), "in their order");
    place.account().await.assert_all_published(0);
    standby.expect_no_surprises(&["ended without a word"]);
}

/// D4. The broker is taken away in the middle: nothing is charged, nothing is parked, nothing is stopped.
#[tokio::test]
async fn a_replay_waits_for_a_broker_that_is_down() {
    let database = Database::create().await;
    let mut broker = Broker::start(kafka::Options::default()).await.unwrap();
    let place = Place::install(&database.url(), &broker.bootstrap(), "replay-outage").await;
    let mut relay = place.setup.clone().set("relay.outage_after_ms", 3_000).start().await;
    emit(&place, 1_000, 5).await;
    dispatched(&mut relay, 1_000).await;
    let replay = start(&place.setup, &["--topic", "*", "--rate", "200"]).await;
    relay.wait_until("it is under way", SOON, |m| m.sum("outboxd_replayed_total", &[]) > 300.0).await;
    broker.kill_9().await.unwrap();
    relay.wait_until("an outage", SOON, |m| m.sum("outboxd_outage", &[("side", "kafka")]) == 1.0).await;
    place.emit("key-1", "{\"n\":1000}").await;
    assert_eq!(show(&place.setup, replay).await["state"], "running");
    broker.start_again().await.unwrap();
    is(&place.setup, replay, "done").await;
    dispatched(&mut relay, 1_001).await;
    let metrics = relay.metrics().await.unwrap();
    assert_eq!(metrics.sum("outboxd_parked_total", &[]), 0.0);
    let account = place.account().await;
    account.assert_all_published(1_000);
    assert!(account.replayed >= 1_000, "{account}");
    relay.expect_no_surprises(&OUTAGE_LINES);
}

#[tokio::test]
async fn an_operator_pauses_resumes_and_cancels_a_replay_and_the_audit_knows_why() {
    let database = Database::create().await;
    let place = Place::install(&database.url(), &shared::kafka(), "replay-paused").await;
    let mut connection = PgConnection::connect(&place.url).await.unwrap();
    let mut relay = place.setup.start().await;
    emit(&place, 500, 5).await;
    dispatched(&mut relay, 500).await;
    let setup = &place.setup;
    let replay = start(setup, &["--topic", "*", "--rate", "100"]).await;
    let decide = async |what: &str| {
        setup.run_ok(&["replay", what, &replay.to_string(), "--reason", "consumers lag", "--as", "ada"]).await
    };
    relay.wait_until("it is under way", SOON, |m| m.sum("outboxd_replayed_total", &[]) > 50.0).await;
    decide("pause").await;
    relay
        .wait_until("it rests", SOON, |m| m.sum("outboxd_replays_open", &[("state", "paused")]) == 1.0)
        .await;
    let resting = eventually("what was published is written down", SOON, async || {
        let published = show(setup, replay).await["published"].as_u64().unwrap();
        let acknowledged = relay.metrics().await?.sum("outboxd_replayed_total", &[]);
        (u32::try_from(published).map(f64::from) == Ok(acknowledged)).then_some(published)
    })
    .await;
    assert!(resting < 500);
    // It rests over a restart, too.
    assert!(relay.terminate(SOON).await.success());
    let mut relay = setup.start().await;
    relay.leads(SOON).await;
    place.emit("key-9", "{\"n\":500}").await;
    dispatched(&mut relay, 1).await;
    assert_eq!(show(setup, replay).await["published"].as_u64(), Some(resting));
    let status = setup.run_json(&["status", "--output", "json"]).await;
    assert_eq!(status["replays"], serde_json::json!([{"state": "paused", "replays": 1}]));
    decide("resume").await;
    relay.wait_until("it goes on", SOON, |m| m.sum("outboxd_replayed_total", &[]) > 20.0).await;
    decide("cancel").await;
    let cancelled = is(setup, replay, "cancelled").await;
    assert_eq!(cancelled["changed_by"], "ada");
    let over = setup.run(&["replay", "resume", &replay.to_string(), "--reason", "x"]).await;
    assert_eq!(over.status.code(), Some(64));
    assert!(String::from_utf8_lossy(&over.stderr).contains("is cancelled: it is over"));
    let next = start(setup, &["--correlation-id", "request-7"]).await;
    is(setup, next, "done").await;
    let kinds: Vec<String> = sqlx::query_scalar(
        "select kind from outbox.operation where who = 'ada' and why = 'consumers lag' order by operation",
    )
    .fetch_all(&mut connection)
    .await
    .unwrap();
    assert_eq!(kinds, ["replay pause", "replay resume", "replay cancel"]);
    relay.expect_no_surprises(&[]);
}

/// Elsewhere, for a new consumer; and a topic that is not there stops the replay where everybody sees it.
#[tokio::test]
async fn copies_go_to_another_topic_and_a_missing_one_stops_them_in_sight_of_everybody() {
    let database = Database::create().await;
    let place = Place::install(&database.url(), &shared::kafka(), "replay-elsewhere").await;
    let mut connection = PgConnection::connect(&place.url).await.unwrap();
    let insert = format!(
        "insert into outbox.message (topic, key, payload, partition)
         select '{}', 'k', convert_to(n::text, 'UTF8'), 2 from generate_series(0, 9) n",
        place.topic
    );
    let mut relay = place.setup.start().await;
    run(&mut connection, &insert).await;
    dispatched(&mut relay, 10).await;
    let backfill = kafka::unique_topic("backfill");
    let setup = &place.setup;
    let replay = start(setup, &["--topic", &place.topic, "--to-topic", &backfill]).await;
    let stopped = is(setup, replay, "stopped").await;
    assert_eq!(stopped["error"], format!("topic {backfill}: topic_unknown"));
    assert!(stopped["stopped_by"].as_str().unwrap().ends_with("@1"), "{stopped}");
    relay
        .wait_until("it is seen", SOON, |m| m.sum("outboxd_replays_open", &[("state", "stopped")]) == 1.0)
        .await;
    let told = setup.run_ok(&["replay", "show", &replay.to_string()]).await;
    assert!(told.contains("Remove the cause, then `outboxd replay resume"), "{told}");

    kafka::create_topic(&place.bootstrap, &backfill, 4, &[]).await;
    let resume = ["replay", "resume", &replay.to_string(), "--reason", "created", "--skip"];
    setup.run_ok(&resume).await;
    let done = is(setup, replay, "done").await;
    assert_eq!((done["published"].as_u64(), done["skipped"].as_u64()), (Some(9), Some(1)), "{done}");
    let records = kafka::read_all(&place.bootstrap, &backfill).await;
    let payloads: Vec<&[u8]> = records.iter().map(|record| record.payload.as_deref().unwrap()).collect();
    assert_eq!(payloads, [b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"8", b"9"]);
    let partitions: std::collections::HashSet<i32> = records.iter().map(|record| record.partition).collect();
    assert_eq!(partitions.len(), 1, "the key decides");
    let skipped = "select count(*) from outbox.operation where kind = 'replay resume' and details->>'skipped' like '%@1'";
    assert_eq!(number(&mut connection, skipped).await, 1);
    assert_eq!(kafka::count(&place.bootstrap, &place.topic).await, 10);
    relay.expect_no_surprises(&["a replay is stopped", "topic cannot be written to"]);
}

/// D3. Writers go on, keys and all: what they write is published meanwhile, and the copies of a replay never come before the first one of
/// their message.
#[tokio::test]
async fn live_messages_flow_beside_a_replay_of_many() {
    let database = Database::create().await;
    let place = Place::install(&database.url(), &shared::kafka(), "replay-beside").await;
    let mut relay = place.setup.clone().set("sweep.every_ms", 10).set("sweep.rows", 500).start().await;
    let mut workload = Workload::new(std::slice::from_ref(&place.topic), 5);
    workload.pause_max = Duration::from_millis(5);
    let writing = workload.start(&place.url).await;
    relay.wait_until("a history", SOON, |m| m.sum("outboxd_dispatched_total", &[]) > 2_000.0).await;
    let replay = start(&place.setup, &["--topic", "*", "--rate", "1000"]).await;
    let begun =
        relay.wait_until("it is under way", SOON, |m| m.sum("outboxd_replayed_total", &[]) > 100.0).await;
    let before = begun.sum("outboxd_dispatched_total", &[]);
    relay
        .wait_until("live messages", SOON, |m| m.sum("outboxd_dispatched_total", &[]) > before + 300.0)
        .await;
    is(&place.setup, replay, "done").await;
    writing.stop().await;
    checker::dealt_with(&place.url, SOON).await;
    let again = start(&place.setup, &["--topic", "*"]).await;
    is(&place.setup, again, "done").await;
    let laps = relay.metrics().await.unwrap().sum("outboxd_swept_total", &[]);
    relay.wait_until("a lap", SOON, |m| m.sum("outboxd_swept_total", &[]) > laps + 20_000.0).await;
    let account = place.account().await;
    eprintln!("{account}");
    account.assert_all_published(0);
    assert!(account.replayed >= account.committed, "{account}");
    let metrics = relay.metrics().await.unwrap();
    assert_eq!(metrics.sum("outboxd_stranded_total", &[]), 0.0, "the sweep finds nothing");
    relay.expect_no_surprises(&[]);
}

/// What was purged meanwhile is not there any more, and that is said.
#[tokio::test]
async fn a_replay_says_how_many_of_its_messages_were_purged_meanwhile() {
    let database = Database::create().await;
    let place = Place::install(&database.url(), &shared::kafka(), "replay-purged").await;
    let mut connection = PgConnection::connect(&place.url).await.unwrap();
    let mut relay = place.setup.start().await;
    emit(&place, 40, 4).await;
    dispatched(&mut relay, 40).await;
    assert!(relay.terminate(SOON).await.success());
    let replay = start(&place.setup, &["--topic", "*"]).await;
    run(&mut connection, "delete from outbox.message where seq <= 15").await;
    let _relay = place.setup.start().await;
    let done = is(&place.setup, replay, "done").await;
    assert_eq!((done["published"].as_u64(), done["total"].as_u64()), (Some(25), Some(40)));
    let told = place.setup.run_ok(&["replay", "show", &replay.to_string()]).await;
    assert!(
        told.contains("15 of the messages that were counted when it was requested were not found"),
        "{told}"
    );
}

/// A reader sees replays, but for keys; who asks for one needs the relay's role, which may do it.
#[tokio::test]
async fn replays_need_the_relays_role_and_a_reader_sees_them_without_keys() {
    let database = Database::create().await;
    let place = Place::install(&database.url(), &shared::kafka(), "replay-roles").await;
    let (relay_role, reader_role) = (database.role("relay").await, database.role("reader").await);
    place.setup.run_ok(&["migrate", "grants", "--relay", &relay_role, "--reader", &reader_role]).await;
    let as_relay = place.setup.clone().set("database.url", database.url_as(&relay_role));
    let as_reader = place.setup.clone().set("database.url", database.url_as(&reader_role));
    let mut relay = as_relay.start().await;
    emit(&place, 20, 2).await;
    dispatched(&mut relay, 20).await;
    let replay = start(&as_relay, &["--topic", &place.topic, "--key", "key-1"]).await;
    is(&as_relay, replay, "done").await;
    let shown = show(&as_reader, replay).await;
    assert_eq!((shown["state"].as_str(), shown["published"].as_u64()), (Some("done"), Some(10)));
    assert!(!shown.to_string().contains("key-1"), "{shown}");
    let refused = as_reader.run(&["replay", "start", "--topic", "*", "--reason", "x"]).await;
    assert_eq!(refused.status.code(), Some(78));
    as_reader.run_ok(&["status"]).await;
    relay.expect_no_surprises(&[]);
}

/// The embedded outbox has the same.
#[tokio::test]
async fn messages_of_a_sqlite_outbox_are_published_again() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("shop.db");
    let place =
        Place::install(&format!("sqlite:{}", file.display()), &shared::kafka(), "replay-sqlite").await;
    let mut relay = place.setup.start().await;
    let mut application = sqlx::SqliteConnection::connect(&file.display().to_string()).await.unwrap();
    for n in 0..30 {
        sqlx::query("insert into outbox_message (topic, key, payload) values (?, ?, ?)")
            .bind(&place.topic)
            .bind(format!("key-{}", n % 3))
            .bind(format!("{{\"n\":{n}}}"))
            .execute(&mut application)
            .await
            .unwrap();
    }
    dispatched(&mut relay, 30).await;
    let id: String = sqlx::query_scalar("select id from outbox_message where seq = 4")
        .fetch_one(&mut application)
        .await
        .unwrap();
    let setup = &place.setup;
    let one = start(setup, &["--id", &id.to_uppercase()]).await;
    let key = start(setup, &["--topic", &place.topic, "--key", "key-2", "--rate", "1000"]).await;
    is(setup, key, "done").await;
    let records = kafka::read_all(&place.bootstrap, &place.topic).await;
    assert_eq!(by_replay(&records, one)[0].header("id"), Some(id.as_str()));
    let keys = by_key(&by_replay(&records, key));
    let expected: Vec<Vec<u8>> = (0..10).map(|n| format!("{{\"n\":{}}}", n * 3 + 2).into_bytes()).collect();
    assert_eq!(keys, BTreeMap::from([(b"key-2".to_vec(), expected)]));
    relay.expect_no_surprises(&[]);
}

/// The setup of the binary for whoever needs no outbox yet.
#[tokio::test]
async fn a_replay_that_nobody_has_asked_for_is_not_there() {
    let database = Database::create().await;
    let setup = Setup::new(BINARY, &database.url(), &shared::kafka());
    setup.run_ok(&["migrate"]).await;
    let missing = setup.run(&["replay", "show", "7"]).await;
    assert_eq!(missing.status.code(), Some(64));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("there is no replay 7"));
    assert!(setup.run_ok(&["replay", "list"]).await.contains("nobody has asked for a replay"));
}
