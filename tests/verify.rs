//! Proving delivery: a run over what was delivered finds nothing, and whatever is done to Kafka's log behind the relay's back is
//! found and named.

use std::collections::HashSet;
use std::time::Duration;

use outboxd_testkit::kafka::{self, Consumed};
use outboxd_testkit::postgres::Database;
use outboxd_testkit::relay::eventually;
use outboxd_testkit::{checker, shared};
use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::support::{Place, SOON};

/// An outbox whose messages were all dispatched, by a relay that is gone.
struct Delivered {
    database: Database,
    place: Place,
}

/// Exit code and report.
struct Verified {
    code: i32,
    report: Value,
}

impl Verified {
    fn finding(&self, kind: &str) -> u64 {
        self.report["findings"][kind].as_u64().unwrap_or_else(|| panic!("no {kind}: {}", self.report))
    }

    /// Nothing is wrong, and every message of so many was verified.
    fn assert_clean(&self, messages: u64) {
        assert_eq!((self.code, &self.report["ok"]), (0, &Value::Bool(true)), "{}", self.report);
        assert_eq!(self.report["verified"].as_u64(), Some(messages), "{}", self.report);
        assert_eq!(self.report["details"], Value::Array(Vec::new()), "{}", self.report);
    }

    /// So many findings of this kind and no other; the text of the first.
    fn assert_found(&self, kind: &str, count: u64) -> String {
        assert_eq!((self.code, &self.report["ok"]), (65, &Value::Bool(false)), "{}", self.report);
        let findings = self.report["findings"].as_object().unwrap();
        for (other, found) in findings {
            let expected = if other == kind { count } else { 0 };
            assert_eq!(found.as_u64(), Some(expected), "{other}: {}", self.report);
        }
        let detail = &self.report["details"][0];
        assert_eq!(detail["finding"], kind, "{}", self.report);
        detail["said"].as_str().unwrap().to_owned()
    }
}

impl Delivered {
    async fn new(purpose: &str, messages: u64) -> Self {
        let database = Database::create().await;
        let place = Place::install(&database.url(), &shared::kafka(), purpose).await;
        let delivered = Self { database, place };
        delivered.emit(messages).await;
        delivered.dispatch().await;
        delivered
    }

    async fn emit(&self, messages: u64) {
        let sql = format!(
            "insert into outbox.message (topic, key, payload) \
             select '{}', 'key-' || i % 7, convert_to('payload-' || i, 'UTF8') from generate_series(1, {messages}) i",
            self.place.topic
        );
        self.sql(&sql).await;
    }

    async fn dispatch(&self) {
        let mut relay = self.place.setup.start().await;
        checker::dealt_with(&self.place.url, SOON).await;
        assert!(relay.terminate(SOON).await.success());
    }

    async fn sql(&self, sql: &str) {
        let mut connection = PgConnection::connect(&self.place.url).await.unwrap();
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut connection).await.unwrap();
    }

    async fn verify(&self, arguments: &[&str]) -> Verified {
        let arguments = [&["verify", "--output", "json"], arguments].concat();
        let output = self.place.setup.run(&arguments).await;
        let text = String::from_utf8_lossy(&output.stdout);
        let report = serde_json::from_str(&text).unwrap_or_else(|error| {
            panic!("no report ({error}): {text}{}", String::from_utf8_lossy(&output.stderr))
        });
        Verified { code: output.status.code().unwrap(), report }
    }

    async fn records(&self) -> Vec<Consumed> {
        kafka::read_all(&self.place.bootstrap, &self.place.topic).await
    }

    async fn delete_topic(&self) {
        kafka::delete_topic(&self.place.bootstrap, &self.place.topic).await;
    }

    async fn create_topic(&self) {
        kafka::create_topic(&self.place.bootstrap, &self.place.topic, 3, &[]).await;
    }

    async fn produce(&self, record: &Consumed) {
        kafka::produce(&self.place.bootstrap, &self.place.topic, record).await;
    }
}

/// Forms of messages, and what operators did to some.
#[tokio::test]
async fn a_run_over_what_was_delivered_finds_nothing_and_needs_the_readers_rights_alone() {
    let delivered = Delivered::new("verify-clean", 500).await;
    let topic = &delivered.place.topic;
    delivered
        .sql(&format!(
            "insert into outbox.message (topic, key) values ('{topic}', 'gone');
             insert into outbox.message (topic, payload) values ('{topic}', 'no key'), ('{topic}', '');
             insert into outbox.message (topic, key, payload, partition) values ('{topic}', 'ключ', '\\x00ff80', 2);
             insert into outbox.message (topic, key, payload, partition) values ('{topic}', 'k', 'wrong', 99);
             insert into outbox.message (topic, key, payload, deliver_after) values ('{topic}', 'k', 'later', now() + interval '1 day')"
        ))
        .await;
    let mut relay = delivered.place.setup.start().await;
    relay.wait_until("one is parked", SOON, |m| m.sum("outboxd_parked_messages", &[]) == 1.0).await;
    let held = delivered.place.setup.run_json(&["held", "list", "--output", "json"]).await;
    let id = held[0]["id"].as_str().unwrap();
    let mended = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(mended.path(), "mended").unwrap();
    let file = mended.path().to_str().unwrap();
    let edit =
        ["held", "edit", id, "--partition", "1", "--payload-file", file, "--yes-change-payload", "--retry"];
    let edit = [&edit[..], &["--reason", "a test"]].concat();
    delivered.place.setup.run_ok(&edit).await;
    relay.wait_until("it is dispatched", SOON, |m| m.sum("outboxd_dispatched_total", &[]) >= 5.0).await;
    checker::dealt_with(&delivered.place.url, SOON).await;
    assert!(relay.terminate(SOON).await.success());

    let reader = delivered.database.role("reader").await;
    delivered.place.setup.run_ok(&["migrate", "grants", "--reader", &reader]).await;
    let url = delivered.database.url_as(&reader);
    let verified = delivered.verify(&["--database-url", &url]).await;
    verified.assert_clean(505);
    assert_eq!(verified.report["not_dispatched"], 1, "the scheduled one");
    assert_eq!(verified.report["copies"]["foreign_records"], 0, "{}", verified.report);

    delivered.verify(&["--topic", "verify-clean*", "--from", "1h"]).await.assert_clean(505);
    delivered.verify(&["--topic", "other*"]).await.assert_clean(0);
    delivered.verify(&["--to", "1h"]).await.assert_clean(0);
    let sampled = delivered.verify(&["--sample", "10%", "--seed", "7", "--rate", "100000"]).await;
    let looked_at = sampled.report["verified"].as_u64().unwrap();
    assert!((10..150).contains(&looked_at), "{}", sampled.report);
    assert!(sampled.report.get("copies").is_none(), "only places that receipts name were looked at");
    let table = delivered.place.setup.run_ok(&["verify"]).await;
    assert!(table.contains("Everything is where its receipt says."), "{table}");
}

/// Copies of a crash, of a replay and of a failed attempt are what the contract allows.
#[tokio::test]
async fn copies_that_a_crash_or_a_replay_made_are_counted_and_no_finding() {
    let delivered = Delivered::new("verify-crash", 20).await;
    delivered.emit(400).await;
    let crashing = delivered.place.little_in_flight().variable("OUTBOXD_FAILPOINT", "acknowledged:120");
    let mut relay = crashing.spawn();
    relay.ended(SOON).await;
    delivered.dispatch().await;
    let mut relay = delivered.place.setup.start().await;
    let replay = ["replay", "start", "--topic", &delivered.place.topic, "--yes", "--reason", "a test"];
    delivered.place.setup.run_ok(&replay).await;
    eventually("the replay is done", SOON, async || {
        let shown = delivered.place.setup.run_json(&["replay", "show", "1", "--output", "json"]).await;
        (shown["state"] == "done").then_some(())
    })
    .await;
    assert!(relay.terminate(SOON).await.success());
    // A copy of a replay that no receipt names: one that a crash took back, for example.
    let mut again = delivered.records().await.remove(0);
    again.headers.push(("outbox-replay-id".to_owned(), Some("1".into())));
    delivered.produce(&again).await;
    // So that the copy lies between receipts.
    delivered.emit(60).await;
    delivered.dispatch().await;

    let verified = delivered.verify(&[]).await;
    verified.assert_clean(480);
    let explained = &verified.report["copies"]["explained"];
    assert!(explained["term"].as_u64().unwrap() > 0, "{}", verified.report);
    assert_eq!(explained["replay"], 1, "{}", verified.report);
    assert_eq!(verified.report["verified_replays"], 420, "{}", verified.report);
}

#[tokio::test]
async fn records_that_were_deleted_are_told_apart_from_those_that_expired() {
    let delivered = Delivered::new("verify-deleted", 300).await;
    let of_partition = delivered.records().await.iter().filter(|record| record.partition == 0).count();
    assert!(of_partition > 10);
    kafka::delete_records(&delivered.place.bootstrap, &delivered.place.topic, 0, 10).await;
    let verified = delivered.verify(&[]).await;
    let said = verified.assert_found("deleted", 10);
    assert!(said.contains("begins at 10 now"), "{said}");
    assert_eq!(verified.report["verified"], 290);

    // Had they been there for longer than the topic keeps them, that is what retention does.
    delivered.sql("update outbox.receipt set settled_at = settled_at - interval '8 days'").await;
    let verified = delivered.verify(&[]).await;
    assert_eq!((verified.code, verified.finding("expired")), (0, 10), "{}", verified.report);
    delivered.verify(&["--strict"]).await.assert_found("expired", 10);
}

#[tokio::test]
async fn a_topic_that_was_made_anew_has_lost_its_messages_or_holds_other_ones_in_their_place() {
    let delivered = Delivered::new("verify-anew", 100).await;
    let records = delivered.records().await;
    delivered.delete_topic().await;
    let verified = delivered.verify(&[]).await;
    let said = verified.assert_found("topic_gone", 100);
    assert!(said.contains("does not exist"), "{said}");

    delivered.create_topic().await;
    let said = delivered.verify(&[]).await.assert_found("lost", 100);
    assert!(said.contains("made anew"), "{said}");

    // Somebody puts everything back, but for three records.
    for (nth, record) in records.iter().enumerate() {
        let mut record = record.clone();
        match nth {
            10 => record.headers.retain(|(name, _)| name != "id"),
            11 => record.payload = Some("forged".into()),
            12 => record.key = Some("forged".into()),
            _ => {}
        }
        delivered.produce(&record).await;
    }
    let verified = delivered.verify(&[]).await;
    verified.assert_found("different", 3);
    let details = verified.report["details"].as_array().unwrap();
    let mut differences: Vec<&str> =
        details.iter().map(|detail| detail["difference"].as_str().unwrap()).collect();
    differences.sort_unstable();
    assert_eq!(differences, ["id", "key", "payload"], "{}", verified.report);
    assert_eq!(verified.report["verified"], 97);
}

/// Offsets begin again with the topic: two receipts name one place, and one of the two messages is gone.
#[tokio::test]
async fn messages_that_later_ones_of_ours_replaced_in_a_topic_made_anew_are_found() {
    let delivered = Delivered::new("verify-replaced", 100).await;
    delivered.delete_topic().await;
    delivered.create_topic().await;
    delivered.emit(100).await;
    delivered.dispatch().await;
    let places = |record: &Consumed| (record.partition, record.offset);
    assert_eq!(delivered.records().await.iter().map(places).collect::<HashSet<_>>().len(), 100);
    let verified = delivered.verify(&[]).await;
    let said = verified.assert_found("different", 100);
    assert!(said.contains("made anew"), "{said}");
    assert_eq!((&verified.report["messages"], &verified.report["verified"]), (&200.into(), &100.into()));

    delivered.delete_topic().await;
    delivered.verify(&[]).await.assert_found("topic_gone", 200);
}

#[tokio::test]
async fn a_copy_that_nothing_explains_is_found() {
    let delivered = Delivered::new("verify-copy", 50).await;
    let copy = delivered.records().await.remove(0);
    delivered.produce(&copy).await;
    // Somebody else's: not ours to explain.
    let mut foreign = copy.clone();
    foreign.headers = vec![("id".to_owned(), Some(uuid::Uuid::new_v4().to_string().into()))];
    delivered.produce(&foreign).await;
    delivered.emit(50).await;
    delivered.dispatch().await;
    let verified = delivered.verify(&[]).await;
    let said = verified.assert_found("unexpected_copy", 1);
    assert!(said.contains("somebody else published it"), "{said}");
    assert_eq!(verified.report["copies"]["foreign_records"], 1, "{}", verified.report);
    assert_eq!(verified.report["verified"], 100);
}

#[tokio::test]
async fn whoever_cannot_reach_a_broker_or_says_what_cannot_be_is_told_by_the_exit_code() {
    let delivered = Delivered::new("verify-codes", 5).await;
    let output = delivered.place.setup.run(&["verify", "--bootstrap-servers", "127.0.0.1:1"]).await;
    assert_eq!(output.status.code(), Some(69), "{}", String::from_utf8_lossy(&output.stderr));
    let output = delivered.place.setup.run(&["verify", "--sample", "200%"]).await;
    assert_eq!(output.status.code(), Some(64));
}

/// The relay looks again and again at what it dispatched, and says what somebody did to it.
#[tokio::test]
async fn a_relay_that_verifies_continuously_finds_a_planted_loss() {
    let delivered = Delivered::new("verify-daemon", 200).await;
    let setup = delivered.place.setup.clone().set("verify.every_s", 1).set("verify.sample", 500);
    let mut relay = setup.start().await;
    relay.wait_until("it verifies", SOON, |m| m.sum("outboxd_verified_total", &[]) >= 150.0).await;
    let metrics = relay.metrics().await.unwrap();
    assert_eq!(metrics.sum("outboxd_verify_findings_total", &[]), 0.0, "{metrics}");
    for partition in 0..3 {
        kafka::delete_records(&delivered.place.bootstrap, &delivered.place.topic, partition, 5).await;
    }
    let found = |metrics: &outboxd_testkit::relay::Metrics| {
        metrics.sum("outboxd_verify_findings_total", &[("finding", "deleted")]) > 0.0
    };
    let metrics = relay.wait_until("the loss is found", SOON, found).await;
    assert!(metrics.sum("outboxd_verify_age_seconds", &[]) < 60.0);
    assert!(relay.terminate(SOON).await.success());
    relay.expect_no_surprises(&["a message is not where its receipt says"]);
}

/// The same from a file.
#[tokio::test]
async fn an_outbox_in_a_sqlite_file_is_verified_as_well() {
    let directory = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", directory.path().join("shop.db").display());
    let place = Place::install(&url, &shared::kafka(), "verify-sqlite").await;
    let path = directory.path().join("shop.db");
    let mut connection = sqlx::SqliteConnection::connect(path.to_str().unwrap()).await.unwrap();
    for nth in 0..50 {
        sqlx::query("insert into outbox_message (topic, key, payload) values (?, ?, ?)")
            .bind(&place.topic)
            .bind(format!("key-{nth}"))
            .bind(format!("payload-{nth}"))
            .execute(&mut connection)
            .await
            .unwrap();
    }
    let mut relay = place.setup.start().await;
    relay.wait_until("all are dispatched", SOON, |m| m.sum("outboxd_dispatched_total", &[]) == 50.0).await;
    assert!(relay.terminate(SOON).await.success());
    let report = place.setup.run_json(&["verify", "--output", "json"]).await;
    assert_eq!((&report["verified"], &report["ok"]), (&50.into(), &true.into()), "{report}");
    kafka::delete_topic(&place.bootstrap, &place.topic).await;
    let output = eventually("the topic is seen to be gone", Duration::from_secs(20), async || {
        let output = place.setup.run(&["verify", "--output", "json"]).await;
        (output.status.code() == Some(65)).then_some(output)
    })
    .await;
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["findings"]["topic_gone"], 50, "{report}");
}
