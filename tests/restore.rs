//! What becomes of an outbox that was restored, copied or moved: it is refused with the command to run, and after that command nothing
//! is lost and no history is published again.

use std::collections::BTreeSet;

use outboxd_testkit::kafka::{self, Broker};
use outboxd_testkit::postgres::{Mode, Options, Server};
use outboxd_testkit::relay::{Setup, eventually};
use outboxd_testkit::workload::Workload;
use outboxd_testkit::{checker, shared};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use uuid::Uuid;

use crate::support::{BINARY, Place, SOON, emit_on};

async fn connect(url: &str) -> PgConnection {
    PgConnection::connect(url).await.unwrap()
}

async fn run(connection: &mut PgConnection, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(connection).await.unwrap();
}

async fn number(connection: &mut PgConnection, sql: &str) -> i64 {
    sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_one(connection).await.unwrap()
}

async fn ids(connection: &mut PgConnection, sql: &str) -> BTreeSet<Uuid> {
    let ids: Vec<Uuid> =
        sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_all(connection).await.unwrap();
    ids.into_iter().collect()
}

/// The relay ends by itself with what must be set right, and so does the preflight.
async fn refused(setup: &Setup, words: &[&str]) {
    let mut relay = setup.spawn();
    let status = relay.ended(SOON).await;
    assert_eq!(status.code(), Some(78));
    let log: String = relay.logged().into_iter().map(|line| line.text + "\n").collect();
    let check = setup.run(&["check"]).await;
    assert_eq!(check.status.code(), Some(78));
    let check = String::from_utf8_lossy(&check.stdout).into_owned();
    for word in words {
        assert!(log.contains(word), "{word} in {log}");
        assert!(check.contains(word), "{word} in {check}");
    }
}

/// Gives out numbers of transactions, as many as it takes to come past those in the rows.
async fn pass_by(connection: &mut PgConnection, xid: i64) {
    let left = xid - number(connection, "select pg_current_xact_id()::text::bigint").await;
    let burn =
        format!("do $$ begin for n in 1..{left} loop perform pg_current_xact_id(); commit; end loop; end $$");
    run(connection, &burn).await;
}

/// An outbox in the middle of its work: history, a held message, a scheduled one, late committers and a backlog; no relay any more.
async fn mid_backlog(place: &Place, seed: u64, deliver_in: &str) {
    let mut relay = place.setup.start().await;
    relay.leads(SOON).await;
    let mut late = connect(&place.url).await;
    run(&mut late, "begin").await;
    for nth in 0..3 {
        emit_on(&mut late, &place.topic, "late", &format!("{{\"n\":{nth}}}")).await;
    }
    place.emit("waits", "{}").await;
    let missing = format!("{}-missing", place.topic);
    emit_on(&mut connect(&place.url).await, &missing, "held", "{}").await;
    let schedule = format!(
        "insert into outbox.message (topic, key, payload, deliver_after) \
         values ('{}', 'scheduled', '{{}}', now() + interval '{deliver_in}')",
        place.topic
    );
    run(&mut connect(&place.url).await, &schedule).await;
    let writing = Workload::new(std::slice::from_ref(&place.topic), seed).start(&place.url).await;
    relay.wait_until("history", SOON, |m| m.sum("outboxd_dispatched_total", &[]) > 300.0).await;
    relay.wait_until("a held message", SOON, |m| m.sum("outboxd_held_messages", &[]) > 0.0).await;
    assert!(relay.terminate(SOON).await.success());
    // Behind the relay's back: below the cursor, and not seen by it.
    run(&mut late, "commit").await;
    eventually("a backlog", SOON, async || {
        let waiting = "select count(*) from outbox.message m, outbox.cursor c where m.seq > c.high";
        (number(&mut late, waiting).await > 50).then_some(())
    })
    .await;
    writing.stop().await;
}

/// D1, D3. The application writes before, while and after; the numbers of the old cluster are passed by.
#[tokio::test]
async fn a_dump_that_is_restored_into_another_cluster_mid_backlog_loses_nothing_and_repeats_no_history() {
    let original = Server::start(Options::default()).await.unwrap();
    let place = Place::install(&original.url("postgres"), &shared::kafka(), "dumped").await;
    pass_by(&mut connect(&place.url).await, 5_000).await;
    mid_backlog(&place, 11, "25 seconds").await;
    let published = kafka::read_all(&place.bootstrap, &place.topic).await.len();
    let dump = original.dump("postgres", &[]).unwrap();
    let restored = Server::start(Options::default()).await.unwrap();
    restored.restore("postgres", &dump).unwrap();
    let url = restored.url("postgres");
    let place = Place { setup: place.setup.clone().set("database.url", &url), url, ..place };
    let mut connection = connect(&place.url).await;
    let high_xid = number(&mut connection, "select max(xid)::text::bigint from outbox.message").await;
    assert!(number(&mut connection, "select pg_current_xact_id()::text::bigint").await < high_xid);

    refused(&place.setup, &["outboxd rebase"]).await;
    let writing = Workload::new(std::slice::from_ref(&place.topic), 12).start(&place.url).await;
    let asked_back = place.setup.run(&["rebase", "--reason", "restored"]).await;
    assert_eq!(asked_back.status.code(), Some(64), "it wants to be told twice");
    let plan = place.setup.run_json(&["rebase", "--reason", "restored", "--dry-run", "-o", "json"]).await;
    // Three by design, and whoever was about to commit when the relay ended.
    assert!(plan["figures"]["late"].as_u64().unwrap() >= 3, "{plan}");
    assert_eq!((&plan["figures"]["held"], &plan["figures"]["scheduled"]), (&1.into(), &1.into()), "{plan}");
    assert!(plan["figures"]["marked"].as_u64().unwrap() > 300 && plan["done"] == false, "{plan}");
    assert_eq!(number(&mut connection, "select count(*) from outbox.operation").await, 0);
    let command = ["rebase", "--reason", "restored from a dump", "--as", "ops", "--yes", "-o", "json"];
    let done = place.setup.run_json(&command).await;
    assert!(done["done"] == true && done["figures"]["late"] == plan["figures"]["late"], "{done}");
    assert_eq!(done["figures"]["unaccounted"], 0, "{done}");
    let audit: (String, String, String) =
        sqlx::query_as("select who, why, details ->> 'cursor_after' from outbox.operation")
            .fetch_one(&mut connection)
            .await
            .unwrap();
    assert_eq!((audit.0.as_str(), audit.1.as_str()), ("ops", "restored from a dump"));
    assert_eq!(audit.2, done["cursor_after"].as_str().unwrap());

    let mut relay = place.setup.clone().set("sweep.every_ms", 10).start().await;
    relay.leads(SOON).await;
    relay.wait_until("new ones", SOON, |m| m.sum("outboxd_dispatched_total", &[]) > 500.0).await;
    // Numbers that the rows of before had are given out now.
    pass_by(&mut connection, high_xid + 500).await;
    let missing = format!("{}-missing", place.topic);
    kafka::create_topic(&place.bootstrap, &missing, 1, &[]).await;
    relay.wait_until("released", SOON, |m| m.sum("outboxd_held_messages", &[]) < 1.0).await;
    writing.stop().await;
    checker::dealt_with(&place.url, SOON).await;
    eventually("the scheduled one has left", SOON, async || {
        let waiting = "select (select count(*) from outbox.scheduled) + (select count(*) from outbox.held)";
        (number(&mut connection, waiting).await == 0).then_some(())
    })
    .await;
    let topics = [place.topic.clone(), missing];
    let account = checker::account(&place.url, &place.bootstrap, &topics).await;
    account.assert_all_published(0);
    assert!(account.records > published as u64);
    let swept = number(&mut connection, "select laps from outbox.sweep").await;
    eventually("the sweep has looked again", SOON, async || {
        let mut connection = connect(&place.url).await;
        (number(&mut connection, "select laps from outbox.sweep").await > swept + 1).then_some(())
    })
    .await;
    assert_eq!(relay.metrics().await.unwrap().sum("outboxd_stranded_total", &[]), 0.0);
}

/// Names in the statements are those of the schema.
#[tokio::test]
async fn an_outbox_in_a_schema_of_its_own_is_rebased_as_well() {
    let original = Server::start(Options::default()).await.unwrap();
    let topic = kafka::unique_topic("schema");
    kafka::create_topic(&shared::kafka(), &topic, 1, &[]).await;
    let setup = Setup::new(BINARY, &original.url("postgres"), &shared::kafka())
        .set("database.schema", "orders_outbox");
    setup.run_ok(&["migrate"]).await;
    let mut connection = connect(&original.url("postgres")).await;
    let emit = format!(
        "insert into orders_outbox.message (topic, key, payload) select '{topic}', 'k', '{{}}' from generate_series(1, 20)"
    );
    run(&mut connection, &emit).await;
    let mut relay = setup.start().await;
    relay.wait_until("history", SOON, |m| m.sum("outboxd_dispatched_total", &[]) >= 20.0).await;
    assert!(relay.terminate(SOON).await.success());
    run(&mut connection, &emit).await;
    let restored = Server::start(Options::default()).await.unwrap();
    restored.restore("postgres", &original.dump("postgres", &["--schema=orders_outbox"]).unwrap()).unwrap();
    let setup = setup.set("database.url", restored.url("postgres"));
    refused(&setup, &["outboxd rebase"]).await;
    setup.run_ok(&["rebase", "--reason", "restored", "--yes"]).await;
    let mut relay = setup.start().await;
    relay.wait_until("the backlog", SOON, |m| m.sum("outboxd_dispatched_total", &[]) >= 20.0).await;
    let published = kafka::read_all(&shared::kafka(), &topic).await;
    let mut connection = connect(&restored.url("postgres")).await;
    let all = ids(&mut connection, "select id from orders_outbox.message").await;
    assert_eq!(published.iter().map(kafka::Consumed::id).collect::<BTreeSet<_>>(), all);
    assert_eq!(published.len(), all.len(), "no history is repeated");
}

/// D1, D3. A copy knows all that its original knows; by its Kafka it is told. The original needs nobody.
#[tokio::test]
async fn a_copy_of_the_file_system_publishes_nothing_to_another_kafka_until_it_is_rebased() {
    let mut original = Server::start(Options::default()).await.unwrap();
    let place = Place::install(&original.url("postgres"), &shared::kafka(), "cloned").await;
    mid_backlog(&place, 21, "1 day").await;
    original.stop(Mode::Fast).await.unwrap();
    let copy = original.copy().await.unwrap();
    original.start_again().await.unwrap();
    let staging = Broker::start(kafka::Options::default()).await.unwrap();
    kafka::create_topic(&staging.bootstrap(), &place.topic, 3, &[]).await;
    let url = copy.url("postgres");
    let setup =
        place.setup.clone().set("database.url", &url).set("kafka.bootstrap_servers", staging.bootstrap());
    let mut connection = connect(&url).await;
    let waiting = ids(
        &mut connection,
        "select m.id from outbox.message m, outbox.cursor c where m.seq > c.high or not pg_visible_in_snapshot(m.xid, c.seen)",
    )
    .await;
    assert!(waiting.len() > 3);
    let known: String = sqlx::query_scalar("select kafka_cluster from outbox.cursor")
        .fetch_one(&mut connection)
        .await
        .unwrap();

    refused(&setup, &["outboxd rebase", &known]).await;
    assert_eq!(kafka::read_all(&staging.bootstrap(), &place.topic).await.len(), 0);
    let done = setup.run_json(&["rebase", "--reason", "staging", "--yes", "-o", "json"]).await;
    assert_eq!(done["kafka_cluster"], known.as_str());
    assert!(done["figures"]["late"].as_u64().unwrap() >= 3, "{done}");
    let mut relay = setup.start().await;
    relay.leads(SOON).await;
    checker::dealt_with(&url, SOON).await;
    let published = kafka::read_all(&staging.bootstrap(), &place.topic).await;
    assert_eq!(published.iter().map(kafka::Consumed::id).collect::<BTreeSet<_>>(), waiting);
    assert_eq!(published.len(), waiting.len());
    let in_order = published
        .iter()
        .filter(|record| record.key.as_deref() == Some(b"late".as_slice()))
        .map(|record| record.payload.clone().unwrap())
        .collect::<Vec<_>>();
    assert_eq!(in_order, ["{\"n\":0}", "{\"n\":1}", "{\"n\":2}"]);
    assert!(relay.terminate(SOON).await.success());

    let mut relay = place.setup.start().await;
    relay.leads(SOON).await;
    let account = place.account().await;
    account.assert_clean(0);
    assert_eq!(account.held, 2, "one is held, one is scheduled");
}

/// D1. What was written with a sequence that had been set back looks dispatched in every way but one: it is younger than the last settle.
#[tokio::test]
async fn a_sequence_that_was_set_back_is_refused_with_its_setval_and_what_was_written_meanwhile_is_found() {
    let server = Server::start(Options::default()).await.unwrap();
    let place = Place::install(&server.url("postgres"), &shared::kafka(), "setval").await;
    let mut connection = connect(&place.url).await;
    for nth in 0..40 {
        place.emit("before", &format!("{{\"n\":{nth}}}")).await;
    }
    let mut relay = place.setup.start().await;
    relay.wait_until("history", SOON, |m| m.sum("outboxd_dispatched_total", &[]) >= 40.0).await;
    checker::dealt_with(&place.url, SOON).await;

    let refused_while_led = place.setup.run(&["rebase", "--reason", "too early", "--yes"]).await;
    assert_eq!(refused_while_led.status.code(), Some(78));
    assert!(String::from_utf8_lossy(&refused_while_led.stderr).contains("stop every relay"));
    assert!(relay.terminate(SOON).await.success());

    // Purged, all but the last few; their receipts are kept longer.
    run(&mut connection, "delete from outbox.message where seq <= 30").await;
    run(&mut connection, "alter sequence outbox.message_seq_seq restart with 1").await;
    for nth in 0..5 {
        place.emit("meanwhile", &format!("{{\"n\":{nth}}}")).await;
    }
    refused(&place.setup, &["select setval('outbox.message_seq_seq', 40)", "outboxd rebase"]).await;
    let done = place.setup.run_json(&["rebase", "--reason", "no setval", "--yes", "-o", "json"]).await;
    assert_eq!((&done["sequence_at"], &done["sequence_to"]), (&5.into(), &40.into()));
    assert_eq!(
        done["figures"]["unaccounted"].as_u64().unwrap() + done["figures"]["late"].as_u64().unwrap(),
        5,
        "{done}"
    );
    for nth in 5..10 {
        place.emit("meanwhile", &format!("{{\"n\":{nth}}}")).await;
    }
    let mut relay = place.setup.start().await;
    relay.wait_until("the rest", SOON, |m| m.sum("outboxd_dispatched_total", &[]) >= 10.0).await;
    let published = kafka::read_all(&place.bootstrap, &place.topic).await;
    assert_eq!(published.len(), 50, "no history is repeated");
    let meanwhile: Vec<String> = published
        .iter()
        .filter(|record| record.key.as_deref() == Some(b"meanwhile".as_slice()))
        .map(|record| String::from_utf8_lossy(record.payload.as_deref().unwrap()).into_owned())
        .collect();
    assert_eq!(meanwhile, (0..10).map(|nth| format!("{{\"n\":{nth}}}")).collect::<Vec<_>>());
}

/// The relay's role may not: it cannot change messages.
#[tokio::test]
async fn a_rebase_needs_the_owner_and_says_so() {
    let database = crate::migrations::installed().await;
    let role = database.role("relay").await;
    Setup::new(BINARY, &database.url(), &shared::kafka())
        .run_ok(&["migrate", "grants", "--relay", &role])
        .await;
    let setup = Setup::new(BINARY, &database.url_as(&role), &shared::kafka());
    for arguments in [&["rebase", "--reason", "x", "--dry-run"][..], &["rebase", "--reason", "x", "--yes"]] {
        let refused = setup.run(arguments).await;
        let text = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(78), "{text}");
        assert!(text.contains("who owns it"), "{text}");
    }
}

/// A copied file is told from its original by its Kafka alone.
#[tokio::test]
async fn a_sqlite_file_forgets_its_kafka_when_it_is_rebased() {
    let directory = tempfile::TempDir::new().unwrap();
    let path = directory.path().join("outbox.db");
    let setup = Setup::new(BINARY, &format!("sqlite:{}", path.display()), &shared::kafka());
    setup.run_ok(&["migrate"]).await;
    let mut file = sqlx::SqliteConnection::connect(&path.display().to_string()).await.unwrap();
    sqlx::query("update outbox_cursor set kafka_cluster = 'elsewhere'").execute(&mut file).await.unwrap();
    refused(&setup, &["outboxd rebase", "elsewhere"]).await;
    let done = setup.run_json(&["rebase", "--reason", "copied", "--yes", "-o", "json"]).await;
    assert_eq!(done["kafka_cluster"], "elsewhere");
    let audit: i64 = sqlx::query_scalar("select count(*) from outbox_operation where why = 'copied'")
        .fetch_one(&mut file)
        .await
        .unwrap();
    assert_eq!(audit, 1);
    let mut relay = setup.start().await;
    relay.leads(SOON).await;
    eventually("its own Kafka is remembered", SOON, async || {
        let known: Option<String> =
            sqlx::query_scalar("select kafka_cluster from outbox_cursor").fetch_one(&mut file).await.ok()?;
        known.filter(|known| known != "elsewhere")
    })
    .await;
}
