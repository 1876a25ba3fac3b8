//! What becomes of messages that cannot be published: only they, and what must stay behind them, wait.

use std::time::Duration;

use outboxd_testkit::checker::{self, Account};
use outboxd_testkit::kafka::{self, Broker};
use outboxd_testkit::postgres::Database;
use outboxd_testkit::relay::{Metrics, Relay, Setup, eventually};
use outboxd_testkit::shared;
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use serde_json::Value;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::support::{BINARY, SOON, emit_on};

/// The one line that a topic which cannot be written to is worth.
const TOPIC_HELD: &str = "topic cannot be written to";
/// The one line that a parked message is worth.
const PARKED: &str = "message is parked";
/// Largest batch of the topic with little room.
const SMALL_LIMIT: &str = "20000";

/// Two topics on the shared broker, of which the second may be missing, and an outbox.
struct Pair {
    database: Database,
    setup: Setup,
    good: String,
    bad: String,
}

impl Pair {
    async fn install(purpose: &str) -> Self {
        let database = Database::create().await;
        let setup = Setup::new(BINARY, &database.url(), &shared::kafka());
        setup.run_ok(&["migrate"]).await;
        let good = kafka::unique_topic(&format!("{purpose}-good"));
        kafka::create_topic(&shared::kafka(), &good, 3, &[]).await;
        Self { database, setup, good, bad: kafka::unique_topic(&format!("{purpose}-bad")) }
    }

    async fn create_bad(&self, config: &[(&str, &str)]) {
        kafka::create_topic(&shared::kafka(), &self.bad, 3, config).await;
    }

    /// The balance of both topics.
    async fn account(&self) -> Account {
        checker::dealt_with(&self.database.url(), SOON).await;
        let topics = [self.good.clone(), self.bad.clone()];
        checker::account(&self.database.url(), &shared::kafka(), &topics).await
    }

    /// Held messages as `held list` prints them.
    async fn held(&self) -> Vec<Value> {
        let listed = self.setup.run_json(&["held", "list", "--limit", "0", "--output", "json"]).await;
        listed.as_array().expect("an array").clone()
    }
}

fn dispatched(metrics: &Metrics) -> f64 {
    metrics.sum("outboxd_dispatched_total", &[])
}

fn charged(metrics: &Metrics) -> f64 {
    ["retry", "parked", "try_alone"]
        .map(|outcome| metrics.sum("outboxd_attempts_total", &[("outcome", outcome)]))
        .iter()
        .sum()
}

async fn emit_sized(connection: &mut PgConnection, topic: &str, key: &str, bytes: i32) -> Uuid {
    sqlx::query_scalar(
        "insert into outbox.message (topic, key, payload)
         values ($1, $2, convert_to(repeat('x', $3), 'UTF8')) returning id",
    )
    .bind(topic)
    .bind(key)
    .bind(bytes)
    .fetch_one(connection)
    .await
    .unwrap()
}

pub(crate) async fn set_limit(topic: &str, bytes: &str) {
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", shared::kafka()).create().unwrap();
    let change = AlterConfig::new(ResourceSpecifier::Topic(topic)).set("max.message.bytes", bytes);
    let changed = admin.alter_configs([&change], &AdminOptions::new()).await.unwrap();
    changed.into_iter().for_each(|result| drop(result.unwrap()));
    // The controller has taken it; the brokers follow.
    let described = async || {
        let topic = [ResourceSpecifier::Topic(topic)];
        let described =
            admin.describe_configs(&topic, &AdminOptions::new()).await.unwrap().remove(0).unwrap();
        (described.get("max.message.bytes")?.value.as_deref() == Some(bytes)).then_some(())
    };
    eventually("the broker knows the new limit", SOON, described).await;
}

async fn all_dispatched(relay: &mut Relay, messages: u32) -> Metrics {
    let all = f64::from(messages);
    relay.wait_until("all of them are dispatched", SOON, |m| dispatched(m) >= all).await
}

/// D1, D3, D4. A topic that does not exist is nobody's fault: its messages wait for it, in order and uncharged, and no
/// other topic notices.
#[tokio::test]
async fn an_unknown_topic_holds_only_its_own_messages_and_lets_them_go_in_order_once_it_exists() {
    let pair = Pair::install("unknown").await;
    let mut connection = pair.database.connect().await;
    let mut relay = pair.setup.start().await;
    for n in 0..200 {
        let topic = if n % 4 == 0 { &pair.bad } else { &pair.good };
        emit_on(&mut connection, topic, &format!("k{}", n % 6), &format!("{{\"n\": {n}}}")).await;
    }
    let metrics = all_dispatched(&mut relay, 150).await;
    assert_eq!(dispatched(&metrics), 150.0, "those of the other topic, and no others");
    checker::dealt_with(&pair.database.url(), SOON).await;
    let held = pair.held().await;
    assert_eq!(held.len(), 50);
    for message in &held {
        assert_eq!(message["topic"], pair.bad);
        assert_eq!(message["attempts"], 0);
        assert!(message["reason"] == "topic_unknown" || message["reason"] == "behind", "{message}");
    }
    assert_eq!(charged(&metrics), 0.0, "no attempt is charged for a topic");
    // The topic is asked about ever less often, up to every ten seconds: whoever waited for that would be slower than this.
    let within = metrics.sum("outboxd_emit_to_acknowledged_seconds_bucket", &[("le", "2.5")]);
    assert_eq!(within, 150.0, "the other topic's messages are as fast as ever: {metrics:?}");

    // Newer messages of both topics, while the old ones wait.
    for n in 200..240 {
        let topic = if n % 4 == 0 { &pair.bad } else { &pair.good };
        emit_on(&mut connection, topic, &format!("k{}", n % 6), &format!("{{\"n\": {n}}}")).await;
    }
    all_dispatched(&mut relay, 180).await;
    pair.create_bad(&[]).await;
    let metrics = all_dispatched(&mut relay, 240).await;
    assert_eq!(charged(&metrics), 0.0);
    let released = metrics.sum("outboxd_released_total", &[]);
    assert_eq!(released, 60.0);
    pair.account().await.assert_all_published(0);

    // The keys are on the direct path again.
    for n in 240..270 {
        emit_on(&mut connection, &pair.bad, &format!("k{}", n % 6), &format!("{{\"n\": {n}}}")).await;
    }
    let metrics = all_dispatched(&mut relay, 270).await;
    assert_eq!(metrics.sum("outboxd_released_total", &[]), released);
    pair.account().await.assert_all_published(0);
    relay.expect_no_surprises(&[TOPIC_HELD]);
}

/// D1, D3, D4. The broker describes the topic and refuses to write to it, which only a delivery report tells; the grant is all
/// that is needed afterwards.
#[tokio::test]
async fn a_topic_that_the_relay_may_not_write_to_is_held_uncharged_until_it_is_authorised() {
    let database = Database::create().await;
    let broker = Broker::start(kafka::Options::default().user("relay", "secret")).await.unwrap();
    let bootstrap = broker.bootstrap();
    let topics = [kafka::unique_topic("allowed"), kafka::unique_topic("forbidden")];
    for topic in &topics {
        kafka::create_topic(&bootstrap, topic, 3, &[]).await;
    }
    broker.allow("relay", &["Write", "Describe"], &topics[0]).unwrap();
    broker.allow("relay", &["Describe"], &topics[1]).unwrap();
    let setup = Setup::new(BINARY, &database.url(), &broker.sasl())
        .variable("OUTBOXD__KAFKA__PROPERTIES__SECURITY_PROTOCOL", "SASL_PLAINTEXT")
        .variable("OUTBOXD__KAFKA__PROPERTIES__SASL_MECHANISM", "PLAIN")
        .variable("OUTBOXD__KAFKA__PROPERTIES__SASL_USERNAME", "relay")
        .variable("OUTBOXD__KAFKA__PROPERTIES__SASL_PASSWORD", "secret");
    setup.run_ok(&["migrate"]).await;
    let mut connection = database.connect().await;
    let mut relay = setup.start().await;
    for n in 0..80 {
        let topic = &topics[usize::from(n % 4 == 0)];
        emit_on(&mut connection, topic, &format!("k{}", n % 6), &format!("{{\"n\": {n}}}")).await;
    }
    all_dispatched(&mut relay, 60).await;
    checker::dealt_with(&database.url(), SOON).await;
    let held: Vec<(String, String, i32)> = sqlx::query_as("select topic, reason, attempts from outbox.held")
        .fetch_all(&mut connection)
        .await
        .unwrap();
    assert_eq!(held.len(), 20);
    assert!(held.iter().all(|(topic, _, attempts)| *topic == topics[1] && *attempts == 0), "{held:?}");
    assert!(held.iter().any(|(_, reason, _)| reason == "topic_unauthorized"), "{held:?}");

    broker.allow("relay", &["Write"], &topics[1]).unwrap();
    let metrics = all_dispatched(&mut relay, 80).await;
    assert_eq!(charged(&metrics), 0.0);
    checker::dealt_with(&database.url(), SOON).await;
    checker::account(&database.url(), &bootstrap, &topics).await.assert_all_published(0);
    let logged = relay.logged();
    assert!(!logged.iter().any(|line| line.text.contains("secret")), "the password is in no log line");
    relay.expect_no_surprises(&[TOPIC_HELD, "librdkafka: ", "Kafka connection in trouble"]);
}

/// D1, D3. Messages keep coming while their topic appears; the key's order holds across the way out of being held, which takes
/// more than one round.
#[tokio::test]
async fn a_key_under_constant_traffic_returns_to_the_direct_path_without_an_inversion() {
    let pair = Pair::install("traffic").await;
    let mut relay = pair.setup.start().await;
    sqlx::query(
        "insert into outbox.message (topic, key, payload)
         select $1, 'k' || (2 * (g % 3) + 1), '{}' from generate_series(1, 3000) g",
    )
    .bind(&pair.bad)
    .execute(&mut pair.database.connect().await)
    .await
    .unwrap();
    let topics = [pair.good.clone(), pair.bad.clone()];
    let mut workload = outboxd_testkit::workload::Workload::new(&topics, 21);
    workload.keys = 6;
    let writing = workload.start(&pair.database.url()).await;
    relay
        .wait_until("messages are held", SOON, |m| {
            m.sum("outboxd_held_total", &[("reason", "topic_unknown")]) > 3_020.0
        })
        .await;
    pair.create_bad(&[]).await;
    relay
        .wait_until("none is held while writers go on", SOON, |m| {
            m.sum("outboxd_released_total", &[]) > 3_020.0
                && m.sum("outboxd_held_messages", &[]) == 0.0
                && m.sum("outboxd_acknowledged_total", &[("topic", &pair.bad)])
                    > m.sum("outboxd_released_total", &[]) + 50.0
        })
        .await;
    writing.stop().await;
    pair.account().await.assert_all_published(0);
    relay.expect_no_surprises(&[TOPIC_HELD]);
}

/// D1, D3. Refused before it is enqueued, so nothing of its key was published after it.
#[tokio::test]
async fn one_message_too_large_among_hundreds_is_parked_alone_and_its_key_waits_behind_it() {
    let pair = Pair::install("too-large").await;
    pair.create_bad(&[("max.message.bytes", SMALL_LIMIT)]).await;
    let mut connection = pair.database.connect().await;
    for n in 0..150 {
        emit_sized(&mut connection, &pair.bad, &format!("k{}", n % 10), 100).await;
    }
    let large = emit_sized(&mut connection, &pair.bad, "k3", 50_000).await;
    for n in 150..300 {
        emit_sized(&mut connection, &pair.bad, &format!("k{}", n % 10), 100).await;
    }
    let mut relay = pair.setup.start().await;
    let metrics = all_dispatched(&mut relay, 285).await;
    assert_eq!(dispatched(&metrics), 285.0, "all but the large one and the 15 of its key that follow");
    checker::dealt_with(&pair.database.url(), SOON).await;
    let held = pair.held().await;
    assert_eq!(held.len(), 16);
    let (parked, behind): (Vec<&Value>, Vec<&Value>) = held.iter().partition(|m| m["state"] == "parked");
    assert_eq!(parked.len(), 1);
    assert_eq!(parked[0]["id"], large.to_string());
    assert_eq!(parked[0]["reason"], "too_large");
    assert!(behind.iter().all(|message| message["state"] == "behind"), "{behind:?}");
    let account = pair.account().await;
    account.assert_clean(0);
    assert_eq!(account.held, 16);
    assert_eq!(metrics.sum("outboxd_overtaken_total", &[]), 0.0);
    relay.expect_no_surprises(&[PARKED]);
}

/// D1. The limit is lowered behind the relay's back, so the broker refuses whole batches; only the large message may be
/// parked for that. Here the order of keys whose batches were refused is the exception that D3 names.
#[tokio::test]
async fn a_refused_batch_is_tried_one_by_one_and_only_the_large_message_is_parked() {
    let pair = Pair::install("batch").await;
    pair.create_bad(&[]).await;
    let mut connection = pair.database.connect().await;
    // The broker weighs a batch as it comes, and this one would weigh next to nothing.
    let setup = pair.setup.clone().set("kafka.compression", "none");
    let mut relay = setup.variable("OUTBOXD__KAFKA__PROPERTIES__LINGER_MS", 50).start().await;
    emit_sized(&mut connection, &pair.bad, "k0", 100).await;
    all_dispatched(&mut relay, 1).await;
    set_limit(&pair.bad, SMALL_LIMIT).await;
    let mut transaction = sqlx::Connection::begin(&mut connection).await.unwrap();
    for n in 0..100 {
        emit_sized(&mut transaction, &pair.bad, &format!("k{}", n % 10), 100).await;
    }
    let large = emit_sized(&mut transaction, &pair.bad, "k3", 50_000).await;
    for n in 0..100 {
        emit_sized(&mut transaction, &pair.bad, &format!("k{}", n % 10), 100).await;
    }
    transaction.commit().await.unwrap();
    all_dispatched(&mut relay, 191).await;
    checker::dealt_with(&pair.database.url(), SOON).await;
    let held = pair.held().await;
    let parked: Vec<&Value> = held.iter().filter(|message| message["state"] == "parked").collect();
    assert_eq!(parked.len(), 1, "{held:?}");
    assert_eq!(parked[0]["id"], large.to_string());
    let account = pair.account().await;
    assert_eq!((account.lost.count, account.stuck.count, account.phantoms.count), (0, 0, 0), "{account}");
    assert_eq!(held.len(), 11, "the large one and those of its key that follow");
    relay.expect_no_surprises(&[PARKED]);
}

/// D1, D3. What an operator can do, from the command line, and that each act is kept.
#[tokio::test]
async fn an_operator_lists_shows_retries_and_discards_held_messages_and_the_audit_keeps_it() {
    let pair = Pair::install("operator").await;
    pair.create_bad(&[("max.message.bytes", SMALL_LIMIT)]).await;
    let mut connection = pair.database.connect().await;
    let retried = emit_sized(&mut connection, &pair.bad, "a", 50_000).await;
    let after_retried = emit_sized(&mut connection, &pair.bad, "a", 10).await;
    let discarded = emit_sized(&mut connection, &pair.bad, "b", 50_000).await;
    let after_discarded = emit_sized(&mut connection, &pair.bad, "b", 10).await;
    let mut relay = pair.setup.start().await;
    relay
        .wait_until("two are parked", SOON, |m| {
            m.sum("outboxd_parked_total", &[("reason", "too_large")]) == 2.0
        })
        .await;
    checker::dealt_with(&pair.database.url(), SOON).await;

    assert_eq!(pair.held().await.len(), 4);
    let only = ["held", "list", "--state", "parked", "--topic", &pair.bad, "--output", "json"];
    let parked = pair.setup.run_json(&only).await;
    let ids: Vec<&Value> = parked.as_array().unwrap().iter().map(|message| &message["id"]).collect();
    assert_eq!(ids, [&retried.to_string(), &discarded.to_string()]);
    let shown = pair.setup.run_json(&["held", "show", &retried.to_string(), "--output", "json"]).await;
    assert_eq!(shown["reason"], "too_large");
    assert_eq!(shown["followers"], 1);
    assert!(shown["error"].as_str().is_some_and(|error| error.contains("max.message.bytes")), "{shown}");
    assert_eq!(shown["payload_bytes"], 50_000);

    let refused = pair.setup.run(&["held", "retry", &after_retried.to_string(), "--reason", "now"]).await;
    assert!(!refused.status.success(), "a follower is never taken out of its order");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains(&retried.to_string()), "it names the message in the way: {said}");
    let unknown = pair.setup.run(&["held", "retry", &Uuid::new_v4().to_string(), "--reason", "now"]).await;
    assert!(!unknown.status.success());

    // In vain: the cause is still there.
    let retry = ["held", "retry", &retried.to_string(), "--as", "ada", "--reason", "again"];
    pair.setup.run_ok(&retry).await;
    relay
        .wait_until("it is parked again", SOON, |m| {
            m.sum("outboxd_parked_total", &[("reason", "too_large")]) == 3.0
        })
        .await;
    let attempts = async || {
        let shown = pair.setup.run_json(&["held", "show", &retried.to_string(), "--output", "json"]).await;
        (shown["state"] == "parked").then(|| shown["attempts"].clone())
    };
    let attempts = eventually("it is parked again", SOON, attempts).await;
    assert_eq!(attempts, 2);

    set_limit(&pair.bad, "1000000").await;
    pair.setup.run_ok(&retry).await;
    all_dispatched(&mut relay, 2).await;
    let discard = ["held", "discard", &discarded.to_string(), "--as", "ada", "--reason", "not needed"];
    pair.setup.run_ok(&discard).await;
    all_dispatched(&mut relay, 3).await;

    let account = pair.account().await;
    account.assert_clean(0);
    assert_eq!((account.held, account.discarded, account.records), (0, 1, 3), "{account}");
    let records = kafka::read_all(&shared::kafka(), &pair.bad).await;
    assert!(records.iter().any(|record| record.id() == after_discarded));
    let audit: Vec<(String, Uuid, String, String, String)> =
        sqlx::query_as("select kind, id, who, why, reason_held from outbox.held_action order by action")
            .fetch_all(&mut connection)
            .await
            .unwrap();
    let acts = |kind: &str, id, why: &str| {
        (kind.to_owned(), id, "ada".to_owned(), why.to_owned(), "too_large".to_owned())
    };
    let expected = [
        acts("retry", retried, "again"),
        acts("retry", retried, "again"),
        acts("discard", discarded, "not needed"),
    ];
    assert_eq!(audit, expected);
    relay.expect_no_surprises(&[PARKED]);
}

/// D1, D3. What is held is in the database: another relay finds it, and the key's order with it.
#[tokio::test]
async fn held_messages_and_the_order_behind_them_survive_a_kill_of_the_relay() {
    let pair = Pair::install("survive").await;
    let mut connection = pair.database.connect().await;
    let mut relay = pair.setup.start().await;
    for n in 0..40 {
        emit_on(&mut connection, &pair.bad, &format!("k{}", n % 4), &n.to_string()).await;
    }
    checker::dealt_with(&pair.database.url(), SOON).await;
    relay.kill_9().await;
    for n in 40..80 {
        emit_on(&mut connection, &pair.bad, &format!("k{}", n % 4), &n.to_string()).await;
    }
    let mut relay = pair.setup.start().await;
    relay.leads(Duration::from_secs(30)).await;
    pair.create_bad(&[]).await;
    all_dispatched(&mut relay, 80).await;
    pair.account().await.assert_all_published(0);
    relay.expect_no_surprises(&[TOPIC_HELD]);
}

/// D3. Which keys are busy is read from the table by whoever leads next: a follower that was written meanwhile does not overtake.
#[tokio::test]
async fn a_parked_message_blocks_its_key_for_the_next_leader_too() {
    let pair = Pair::install("blocks").await;
    pair.create_bad(&[("max.message.bytes", SMALL_LIMIT)]).await;
    let mut connection = pair.database.connect().await;
    let parked = emit_sized(&mut connection, &pair.bad, "a", 50_000).await;
    let mut relay = pair.setup.start().await;
    checker::dealt_with(&pair.database.url(), SOON).await;
    relay.kill_9().await;
    for key in ["a", "b", "a", "b"] {
        emit_sized(&mut connection, &pair.bad, key, 10).await;
    }
    let mut next = pair.setup.start().await;
    all_dispatched(&mut next, 2).await;
    checker::dealt_with(&pair.database.url(), SOON).await;
    let held = pair.held().await;
    assert_eq!(held.len(), 3, "{held:?}");
    assert_eq!(pair.account().await.held, 3, "none of the key is published");
    pair.setup.run_ok(&["held", "discard", &parked.to_string(), "--reason", "not needed"]).await;
    all_dispatched(&mut next, 4).await;
    pair.account().await.assert_clean(0);
    next.expect_no_surprises(&[]);
}

/// D1, D3. What an operator mends goes out mended, under the same id, and the rest of its key after it. Another topic is another key.
#[tokio::test]
async fn an_edited_message_is_published_as_the_operator_says_and_the_intent_stays_as_it_is() {
    let pair = Pair::install("edit").await;
    pair.create_bad(&[("max.message.bytes", SMALL_LIMIT)]).await;
    let mut connection = pair.database.connect().await;
    let large = emit_sized(&mut connection, &pair.bad, "a", 50_000).await;
    emit_sized(&mut connection, &pair.bad, "a", 10).await;
    let moved = emit_sized(&mut connection, &pair.bad, "b", 60_000).await;
    emit_sized(&mut connection, &pair.bad, "b", 20).await;
    let placed = emit_sized(&mut connection, &pair.bad, "c", 70_000).await;
    let mut relay = pair.setup.start().await;
    checker::dealt_with(&pair.database.url(), SOON).await;
    let payload = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(payload.path(), "mended").unwrap();
    let file = payload.path().display().to_string();
    let because = ["--reason", "mended", "--as", "ada"];
    let (large_id, moved_id) = (large.to_string(), moved.to_string());
    let edit = [
        "held",
        "edit",
        &large_id,
        "--header",
        "mended=yes",
        "--payload-file",
        &file,
        "--yes-change-payload",
    ];
    pair.setup.run_ok(&[&edit[..], &because].concat()).await;
    let edit = ["held", "edit", &moved_id, "--topic", &pair.good, "--retry"];
    pair.setup.run_ok(&[&edit[..], &because].concat()).await;
    // The one that was moved, and what waited behind it; the other stays parked until it is retried.
    let metrics = all_dispatched(&mut relay, 2).await;
    assert_eq!(dispatched(&metrics), 2.0);
    pair.setup.run_ok(&[&["held", "retry", &large_id][..], &because].concat()).await;
    let placed_id = placed.to_string();
    for partition in ["2", "1"] {
        let edit = ["held", "edit", &placed_id, "--partition", partition, "--payload-file", &file];
        let sure = ["--yes-change-payload"];
        pair.setup.run_ok(&[&edit[..], &sure, &because].concat()).await;
        // The same bytes again are no change; another place is one.
    }
    pair.setup.run_ok(&[&["held", "retry", &placed_id][..], &because].concat()).await;
    all_dispatched(&mut relay, 5).await;

    let records = kafka::read_all(&shared::kafka(), &pair.bad).await;
    let of_key: Vec<&kafka::Consumed> =
        records.iter().filter(|record| record.key.as_deref() == Some(b"a")).collect();
    assert_eq!(
        of_key.iter().map(|record| record.id()).next(),
        Some(large),
        "it goes before what waited for it"
    );
    assert_eq!(of_key[0].payload.as_deref(), Some(&b"mended"[..]));
    assert_eq!(of_key[0].header("mended"), Some("yes"));
    let of_c: Vec<(Uuid, i32)> = records
        .iter()
        .filter(|record| record.key.as_deref() == Some(b"c"))
        .map(|record| (record.id(), record.partition))
        .collect();
    assert_eq!(of_c, [(placed, 1)], "where the operator said, and no longer where its key is");
    let elsewhere = kafka::read_all(&shared::kafka(), &pair.good).await;
    assert_eq!(elsewhere.iter().map(kafka::Consumed::id).collect::<Vec<_>>(), [moved]);
    let intents: i64 =
        sqlx::query_scalar("select count(*) from outbox.message where octet_length(payload) >= 50000")
            .fetch_one(&mut connection)
            .await
            .unwrap();
    assert_eq!(intents, 3, "the intents are what they were");
    relay.expect_no_surprises(&[PARKED]);
}

/// D1. The relay releases what an operator retries and discards by the thousand at that very moment: each message is published or
/// discarded, neither side is held up, and no lock of one ends the other.
#[tokio::test]
async fn thousands_are_decided_about_while_the_relay_releases_them() {
    const HELD: i64 = 12_000;
    let pair = Pair::install("bulk").await;
    let mut relay = pair.setup.start().await;
    sqlx::query(
        "insert into outbox.message (topic, key, payload)
         select $1, 'k' || g % 3000, '{}' from generate_series(1, $2) g",
    )
    .bind(&pair.bad)
    .bind(HELD)
    .execute(&mut pair.database.connect().await)
    .await
    .unwrap();
    checker::dealt_with(&pair.database.url(), SOON).await;
    pair.create_bad(&[]).await;
    relay.wait_until("it has begun to release", SOON, |m| m.sum("outboxd_released_total", &[]) > 500.0).await;
    let retry = ["held", "retry", "--topic", &pair.bad, "--reason", "hurry", "--output", "json"];
    let discard = ["held", "discard", "--topic", &pair.bad, "--reason", "enough", "--output", "json"];
    let (retried, discarded) = tokio::join!(pair.setup.run_json(&retry), pair.setup.run_json(&discard));
    eprintln!("retried {}, discarded {} of {HELD}", retried["done"], discarded["done"]);
    checker::dealt_with(&pair.database.url(), SOON).await;
    let nothing_held = async || pair.held().await.is_empty().then_some(());
    eventually("nothing is held", SOON, nothing_held).await;
    let account = pair.account().await;
    account.assert_clean(0);
    assert_eq!(account.held, 0, "{account}");
    let said = discarded["done"].as_i64().unwrap();
    let kept = i64::try_from(account.discarded).unwrap();
    // What was with Kafka when it was discarded is published all the same.
    assert!((1..=said).contains(&kept), "{said} discarded: {account}");
    relay.expect_no_surprises(&[TOPIC_HELD]);
}
