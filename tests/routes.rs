//! Policies per topic, and what else a topic's configuration means for its messages: compression, and partitions that are added.

use std::collections::BTreeMap;
use std::time::Duration;

use outboxd_testkit::checker;
use outboxd_testkit::kafka::{self, Broker, Consumed};
use outboxd_testkit::postgres::Database;
use outboxd_testkit::relay::{Metrics, Setup, eventually};
use outboxd_testkit::shared;
use outboxd_testkit::workload::Workload;
use serde_json::Value;
use sqlx::PgConnection;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use crate::support::{BINARY, SOON, emit_on};

const PARKED: &str = "message is parked";
/// Room for a record of some hundred bytes.
const SMALL: [(&str, &str); 1] = [("max.message.bytes", "1000")];

/// An outbox, a topic that takes little, and a topic for dead letters.
struct Place {
    database: Database,
    setup: Setup,
    small: String,
    dead: String,
}

impl Place {
    /// `routes`: the configuration file, in which SMALL and DEAD stand for the topics.
    async fn install(purpose: &str, routes: &str) -> Self {
        let database = Database::create().await;
        let small = kafka::unique_topic(&format!("{purpose}-small"));
        let dead = kafka::unique_topic(&format!("{purpose}-dead"));
        kafka::create_topic(&shared::kafka(), &small, 3, &SMALL).await;
        kafka::create_topic(&shared::kafka(), &dead, 3, &[]).await;
        let routes = routes.replace("SMALL", &small).replace("DEAD", &dead);
        let setup = Setup::new(BINARY, &database.url(), &shared::kafka()).file(&routes);
        setup.run_ok(&["migrate"]).await;
        Self { database, setup, small, dead }
    }

    async fn shown(&self, id: Uuid) -> Value {
        self.setup.run_json(&["held", "show", &id.to_string(), "--output", "json"]).await
    }

    async fn dead_letters(&self) -> Vec<Consumed> {
        kafka::read_all(&shared::kafka(), &self.dead).await
    }
}

async fn emit_sized(connection: &mut PgConnection, topic: &str, key: &str, bytes: i32) -> Uuid {
    sqlx::query_scalar(
        "insert into outbox.message (topic, key, payload, headers, correlation_id)
         values ($1, $2, convert_to(repeat('x', $3), 'UTF8'), '{\"own\": \"1\"}', 'of-' || $2) returning id",
    )
    .bind(topic)
    .bind(key)
    .bind(bytes)
    .fetch_one(connection)
    .await
    .unwrap()
}

fn dispatched(metrics: &Metrics) -> f64 {
    metrics.sum("outboxd_dispatched_total", &[])
}

/// Numbers in payloads, in the order of the log.
fn numbers(records: &[Consumed]) -> Vec<u32> {
    let number = |record: &Consumed| std::str::from_utf8(record.payload.as_deref()?).ok()?.parse().ok();
    records.iter().map(|record| number(record).unwrap()).collect()
}

#[tokio::test]
async fn routes_that_overlap_are_refused_at_start_and_by_config_check_with_both_named() {
    let routes =
        "[[route]]\ntopics = [\"orders.*\"]\n[[route]]\ntopics = [\"*.eu\"]\non_refused = \"skip\"\n";
    let setup = Setup::new(BINARY, "postgres://nobody@localhost:1/none", "localhost:1").file(routes);
    for command in [&["run"][..], &["config", "check"]] {
        let refused = setup.run(command).await;
        assert_eq!(refused.status.code(), Some(78), "{command:?}");
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(said.contains("\"orders.*\" of route 1 and \"*.eu\" of route 2"), "{said}");
    }
}

/// D1. The copy says everything, the row stays the record, and a retry does what it always did.
#[tokio::test]
async fn a_parked_message_is_copied_with_its_story_and_retried_from_its_row() {
    let place = Place::install("letters", "[[route]]\ntopics = [\"SMALL\"]\ndead_letter = \"DEAD\"\n").await;
    let mut connection = place.database.connect().await;
    let mut relay = place.setup.start().await;
    let began = OffsetDateTime::now_utc();
    let parked = emit_sized(&mut connection, &place.small, "k", 5_000).await;
    let follower = emit_sized(&mut connection, &place.small, "k", 10).await;
    let shown = eventually("it is parked", SOON, async || {
        let output = place.setup.run(&["held", "show", &parked.to_string(), "--output", "json"]).await;
        serde_json::from_slice::<Value>(&output.stdout).ok()
    })
    .await;
    let letters = place.dead_letters().await;
    let [letter] = &letters[..] else { panic!("one copy: {letters:?}") };
    assert_eq!(shown["dead_letter"], format!("{}[{}]@{}", place.dead, letter.partition, letter.offset));
    assert_eq!(letter.id(), parked);
    assert_eq!(letter.key.as_deref(), Some(&b"k"[..]));
    assert_eq!(letter.payload.as_ref().map(|payload| payload.len()), Some(5_000));
    for (header, value) in [
        ("correlation-id", "of-k"),
        ("outbox-dead-letter-reason", "too_large"),
        ("outbox-dead-letter-attempts", "1"),
        ("outbox-dead-letter-topic", &place.small),
        ("own", "1"),
    ] {
        assert_eq!(letter.header(header), Some(value), "{header}");
    }
    assert!(
        letter.header("outbox-dead-letter-error").is_some_and(|error| error.contains("max.message.bytes"))
    );
    let at = OffsetDateTime::parse(letter.header("outbox-dead-letter-time").unwrap(), &Rfc3339).unwrap();
    assert!(at >= began - Duration::from_secs(1) && at <= OffsetDateTime::now_utc(), "{at}");
    // Its key waits, as without a dead-letter topic.
    let shown = place.shown(follower).await;
    assert_eq!((&shown["state"], &shown["dead_letter"]), (&Value::from("behind"), &Value::Null));

    // In vain, so it is copied once more.
    place.setup.run_ok(&["held", "retry", &parked.to_string(), "--reason", "again"]).await;
    let copies = async || (place.dead_letters().await.len() == 2).then_some(());
    eventually("another copy", SOON, copies).await;
    let settled = async || (place.shown(parked).await["attempts"] == 2).then_some(());
    eventually("it is parked again", SOON, settled).await;
    assert!(place.dead_letters().await.iter().all(|letter| letter.id() == parked));
    place.setup.run_ok(&["held", "discard", &parked.to_string(), "--reason", "not needed"]).await;
    let metrics = relay.wait_until("its follower goes", SOON, |metrics| dispatched(metrics) > 0.0).await;
    assert_eq!(metrics.sum("outboxd_dead_lettered_total", &[]), 2.0);
    assert_eq!(metrics.sum("outboxd_dead_letter_failures_total", &[]), 0.0);
    assert_eq!(metrics.sum("outboxd_parked_total", &[("reason", "too_large")]), 2.0);
    relay.expect_no_surprises(&[PARKED]);
}

/// D1. The copy is there and nothing in the database says so: the next relay parks the message and copies it again.
#[tokio::test]
async fn a_relay_killed_between_a_copy_and_its_settle_parks_the_message_and_repeats_the_copy() {
    let place = Place::install("killed", "[[route]]\ntopics = [\"SMALL\"]\ndead_letter = \"DEAD\"\n").await;
    let mut connection = place.database.connect().await;
    let parked = emit_sized(&mut connection, &place.small, "k", 5_000).await;
    emit_sized(&mut connection, &place.small, "other", 10).await;
    let mut killed = place.setup.clone().variable("OUTBOXD_FAILPOINT", "dead_lettered:1").spawn();
    killed.ended(SOON).await;
    assert_eq!(place.dead_letters().await.len(), 1);
    let held: i64 =
        sqlx::query_scalar("select count(*) from outbox.held").fetch_one(&mut connection).await.unwrap();
    assert_eq!(held, 0, "nothing is settled");
    let mut relay = place.setup.start().await;
    relay.wait_until("the other one goes", SOON, |metrics| dispatched(metrics) > 0.0).await;
    checker::dealt_with(&place.database.url(), SOON).await;
    let shown = place.shown(parked).await;
    assert_eq!((&shown["state"], &shown["attempts"]), (&Value::from("parked"), &Value::from(1)));
    let letters = place.dead_letters().await;
    assert_eq!(letters.iter().map(Consumed::id).collect::<Vec<_>>(), [parked, parked]);
    relay.expect_no_surprises(&[PARKED]);
}

/// D1, D3. The exception that a policy makes: the key goes on without its parked message, in order, and that is counted.
#[tokio::test]
async fn a_key_goes_on_in_order_without_what_is_skipped_and_that_is_counted() {
    let place = Place::install("skip", "[[route]]\ntopics = [\"SMALL*\"]\non_refused = \"skip\"\n").await;
    let mut connection = place.database.connect().await;
    let mut relay = place.setup.start().await;
    let mut parked = Vec::new();
    for n in 0..300 {
        if n % 50 == 20 {
            parked.push(emit_sized(&mut connection, &place.small, &format!("k{}", n % 3), 5_000).await);
        } else {
            emit_on(&mut connection, &place.small, &format!("k{}", n % 3), &n.to_string()).await;
        }
    }
    let metrics =
        relay.wait_until("all the others are out", SOON, |metrics| dispatched(metrics) >= 294.0).await;
    assert_eq!(metrics.sum("outboxd_skipped_total", &[]), 6.0);
    assert_eq!(metrics.sum("outboxd_held_total", &[]), 0.0, "nothing has waited behind one of them");
    checker::dealt_with(&place.database.url(), SOON).await;
    let account =
        checker::account(&place.database.url(), &shared::kafka(), std::slice::from_ref(&place.small)).await;
    account.assert_clean(0);
    assert_eq!((account.records, account.held), (294, 6));
    let shown = place.shown(parked[0]).await;
    assert_eq!((&shown["state"], &shown["key_hash"]), (&Value::from("parked"), &Value::Null));
    // Still discarded and audited like any other.
    place.setup.run_ok(&["held", "discard", &parked[0].to_string(), "--reason", "not needed"]).await;
    relay.expect_no_surprises(&[PARKED]);
}

#[tokio::test]
async fn a_message_goes_where_its_route_says_under_the_names_that_its_route_gives() {
    let place = Place::install(
        "staging",
        "[relay]\ntopics_allowed = [\"SMALL*\"]\n
         [[route]]\ntopics = [\"SMALL*\"]\ntopic_prefix = \"staging.\"\n
         header_aliases = { \"correlation-id\" = \"x-request-id\", \"id\" = \"message-id\" }\n",
    )
    .await;
    let staged = format!("staging.{}", place.small);
    kafka::create_topic(&shared::kafka(), &staged, 3, &[]).await;
    let mut connection = place.database.connect().await;
    // Somebody has taken the guard away.
    sqlx::raw_sql("alter table outbox.message drop constraint message_topic")
        .execute(&mut connection)
        .await
        .unwrap();
    let mut relay = place.setup.start().await;
    let mut ids = Vec::new();
    for topic in [&place.small, &place.dead, "__consumer_offsets"] {
        ids.push(emit_sized(&mut connection, topic, "k", 10).await);
    }
    checker::dealt_with(&place.database.url(), SOON).await;
    relay.wait_until("the first is out", SOON, |metrics| dispatched(metrics) == 1.0).await;
    let records = kafka::read_all(&shared::kafka(), &staged).await;
    let [record] = &records[..] else { panic!("one record: {records:?}") };
    let id = ids[0].to_string();
    for (header, value) in
        [("id", id.as_str()), ("message-id", &id), ("correlation-id", "of-k"), ("x-request-id", "of-k")]
    {
        assert_eq!(record.header(header), Some(value), "{header}");
    }
    assert_eq!(kafka::count(&shared::kafka(), &place.small).await, 0);
    assert_eq!(place.shown(ids[1]).await["reason"], "topic_not_allowed");
    assert_eq!(place.shown(ids[2]).await["reason"], "illegal_topic");
    assert!(place.dead_letters().await.is_empty());
    // The preflight asks Kafka about the topic that it is, and says what is not allowed.
    let checked = place.setup.run(&["check", "--output", "json"]).await;
    let findings: Value = serde_json::from_slice(&checked.stdout).unwrap();
    let said = findings.to_string();
    assert!(said.contains(&staged) && said.contains("not allowed"), "{said}");
    relay.expect_no_surprises(&[PARKED]);
}

/// The codec of each batch in a segment: three bits of its attributes (Kafka protocol, record batch format v2).
fn codecs(segment: &[u8]) -> Vec<u8> {
    let mut codecs = Vec::new();
    let mut rest = segment;
    while rest.len() >= 61 {
        let length = u32::from_be_bytes(rest[8..12].try_into().unwrap());
        if length == 0 {
            break;
        }
        codecs.push(rest[22] & 0b111);
        rest = rest.get(12 + usize::try_from(length).unwrap()..).unwrap_or_default();
    }
    codecs
}

#[tokio::test]
async fn batches_are_compressed_with_lz4_or_as_configured_and_arrive_as_written() {
    let broker = Broker::start(kafka::Options::default()).await.unwrap();
    let bootstrap = broker.bootstrap();
    let database = Database::create().await;
    let setup = Setup::new(BINARY, &database.url(), &bootstrap);
    setup.run_ok(&["migrate"]).await;
    let mut connection = database.connect().await;
    for (compression, codec) in [
        (None, 3),
        (Some("none"), 0),
        (Some("gzip"), 1),
        (Some("snappy"), 2),
        (Some("lz4"), 3),
        (Some("zstd"), 4),
    ] {
        let topic = kafka::unique_topic(compression.unwrap_or("default"));
        kafka::create_topic(&bootstrap, &topic, 1, &[]).await;
        sqlx::query(
            "insert into outbox.message (topic, key, payload)
             select $1, 'k', convert_to(repeat('to be said again and again ', 100) || g, 'UTF8') from generate_series(1, 100) g",
        )
        .bind(&topic)
        .execute(&mut connection)
        .await
        .unwrap();
        let setup = setup.clone();
        let setup = compression.into_iter().fold(setup, |setup, word| setup.set("kafka.compression", word));
        let mut relay = setup.start().await;
        let records = kafka::read_at_least(&bootstrap, &topic, 100, SOON).await;
        for (record, n) in records.iter().zip(1..) {
            let expected = format!("{}{n}", "to be said again and again ".repeat(100));
            assert_eq!(record.payload.as_deref(), Some(expected.as_bytes()));
        }
        assert!(relay.terminate(SOON).await.success());
        let segment = broker.segment(&topic, 0).unwrap();
        let found = codecs(&segment);
        assert!(!found.is_empty() && found.iter().all(|its| *its == codec), "{compression:?}: {found:?}");
        assert_eq!(segment.len() < 100 * 2_700 / 2, codec != 0, "{compression:?}: {} bytes", segment.len());
    }
}

/// D1, D3. The exception that Kafka makes: keys are placed anew. Nothing is lost, within a partition a key's order holds, and it is told.
#[tokio::test]
async fn partitions_added_under_load_lose_nothing_keep_the_order_within_each_and_are_told() {
    let database = Database::create().await;
    let setup = Setup::new(BINARY, &database.url(), &shared::kafka());
    setup.run_ok(&["migrate"]).await;
    let topic = kafka::unique_topic("growing");
    kafka::create_topic(&shared::kafka(), &topic, 2, &[]).await;
    let mut relay = setup.start().await;
    let writing = Workload::new(std::slice::from_ref(&topic), 5).start(&database.url()).await;
    // Long enough that what is known of the topic may be doubted.
    relay
        .wait_until("traffic", SOON, |m| {
            dispatched(m) > 300.0 && m.sum("outboxd_settle_seconds_count", &[]) > 60.0
        })
        .await;
    kafka::add_partitions(&shared::kafka(), &topic, 5).await;
    // An intent that names one of the new partitions makes the relay look at once; without any it does within a minute.
    sqlx::query("insert into outbox.message (topic, payload, partition) values ($1, 'x', 4)")
        .bind(&topic)
        .execute(&mut database.connect().await)
        .await
        .unwrap();
    let before = dispatched(
        &relay
            .wait_until("it is told", Duration::from_secs(90), |m| {
                m.sum("outboxd_partition_changes_total", &[]) == 1.0
            })
            .await,
    );
    relay.wait_until("traffic goes on", SOON, |m| dispatched(m) > before + 500.0).await;
    writing.stop().await;
    checker::dealt_with(&database.url(), SOON).await;
    let account = checker::account(&database.url(), &shared::kafka(), std::slice::from_ref(&topic)).await;
    assert_eq!((account.lost.count, account.stuck.count, account.phantoms.count), (0, 0, 0), "{account}");
    assert_eq!((account.divergent.count, account.duplicates, account.held), (0, 0, 0), "{account}");

    let mut by_place: BTreeMap<(i32, String), Vec<u64>> = BTreeMap::new();
    for record in kafka::read_all(&shared::kafka(), &topic).await {
        let Some(key) = &record.key else { continue };
        let key = String::from_utf8(key.to_vec()).unwrap();
        let payload: Value = serde_json::from_slice(record.payload.as_deref().unwrap()).unwrap();
        by_place.entry((record.partition, key)).or_default().push(payload["n"].as_u64().unwrap());
    }
    assert!(by_place.keys().any(|(partition, _)| *partition > 1), "keys are in new partitions too");
    for (place, numbers) in &by_place {
        assert!(numbers.is_sorted(), "{place:?}: {numbers:?}");
    }
    let warnings: Vec<Value> = relay
        .logged()
        .into_iter()
        .filter(|line| line.text.contains("number of partitions has changed"))
        .filter_map(|line| line.json)
        .collect();
    let [warning] = &warnings[..] else { panic!("one warning: {warnings:?}") };
    assert_eq!(warning["level"], "WARN");
    assert!(
        warning.to_string().contains("\"partitions_before\":2")
            && warning.to_string().contains("\"partitions\":5")
    );
    relay.expect_no_surprises(&["number of partitions has changed"]);
}

/// D3. An exception to order that somebody makes on purpose: what an operator discards is passed by, in the order of the rest.
#[tokio::test]
async fn the_followers_of_a_discarded_message_go_in_order() {
    let place = Place::install("discard", "").await;
    let mut connection = place.database.connect().await;
    let discarded = emit_sized(&mut connection, &place.small, "k", 5_000).await;
    for n in 0..40 {
        emit_on(&mut connection, &place.small, "k", &n.to_string()).await;
    }
    let mut relay = place.setup.start().await;
    checker::dealt_with(&place.database.url(), SOON).await;
    place.setup.run_ok(&["held", "discard", &discarded.to_string(), "--reason", "not needed"]).await;
    relay.wait_until("its followers go", SOON, |metrics| dispatched(metrics) == 40.0).await;
    let records = kafka::read_all(&shared::kafka(), &place.small).await;
    assert_eq!(numbers(&records), (0..40).collect::<Vec<_>>());
    let audit: Vec<(String, Uuid)> =
        sqlx::query_as("select kind, id from outbox.held_action").fetch_all(&mut connection).await.unwrap();
    assert_eq!(audit, [("discard".to_owned(), discarded)]);
    relay.expect_no_surprises(&[PARKED]);
}
