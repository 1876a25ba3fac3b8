//! The sweep, which proves from the table that nothing was lost: it finds what was planted, and nothing else.

use std::time::Duration;

use outboxd_core::Routes;
use outboxd_engine::{OutboxError, Term, Upkeep};
use outboxd_postgres::{PostgresConfig, PostgresOutbox, SchemaName};
use outboxd_testkit::postgres::Database;
use outboxd_testkit::relay::eventually;
use outboxd_testkit::workload::{Bulk, Workload};
use outboxd_testkit::{checker, kafka, shared};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::support::{IN_FLIGHT, Place, SOON};

async fn run(connection: &mut PgConnection, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(connection).await.unwrap();
}

async fn number(connection: &mut PgConnection, sql: &str) -> i64 {
    sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_one(connection).await.unwrap()
}

/// D1. A seq below the cursor with a number of long ago, which only a superuser can write, and a cursor that somebody moved by hand.
#[tokio::test]
async fn messages_that_were_stranded_by_hand_are_found_dispatched_and_counted() {
    let database = Database::create().await;
    let place = Place::install(&database.url(), &shared::kafka(), "stranded").await;
    let mut connection = PgConnection::connect(&place.url).await.unwrap();
    let setup = place.setup.clone().set("sweep.every_ms", 10).set("sweep.rows", 7);
    let mut relay = setup.start().await;
    for nth in 0..20 {
        place.emit("fine", &format!("{{\"n\":{nth}}}")).await;
        if nth == 10 {
            // A gap, as a transaction leaves that is rolled back.
            run(&mut connection, "select nextval('outbox.message_seq_seq') from generate_series(1, 3)").await;
        }
    }
    relay.wait_until("history", SOON, |m| m.sum("outboxd_dispatched_total", &[]) >= 20.0).await;
    let gap = number(&mut connection, "select max(seq) + 1 from outbox.message where seq <= 11").await;
    for (nth, seq) in (0..).zip(gap..gap + 3) {
        let insert = format!(
            "insert into outbox.message (xid, topic, key, payload, seq) overriding system value \
             values ('3', '{}', 'planted', '{{\"n\":{nth}}}', {seq})",
            place.topic
        );
        run(&mut connection, &insert).await;
    }
    relay.wait_until("those are found", SOON, |m| m.sum("outboxd_stranded_total", &[]) == 3.0).await;
    relay.wait_until("and dispatched", SOON, |m| m.sum("outboxd_dispatched_total", &[]) >= 23.0).await;
    assert!(relay.terminate(SOON).await.success());
    relay.expect_no_surprises(&["messages that the cursor had passed were not delivered"]);

    for nth in 0..4 {
        place.emit("passed", &format!("{{\"n\":{nth}}}")).await;
    }
    run(
        &mut connection,
        "update outbox.cursor set high = (select max(seq) from outbox.message), seen = pg_current_snapshot()",
    )
    .await;
    let mut relay = setup.start().await;
    relay.wait_until("those are found", SOON, |m| m.sum("outboxd_stranded_total", &[]) == 4.0).await;
    relay.wait_until("and dispatched", SOON, |m| m.sum("outboxd_dispatched_total", &[]) >= 4.0).await;
    eventually("nothing is held", SOON, async || {
        (number(&mut connection, "select count(*) from outbox.held").await == 0).then_some(())
    })
    .await;
    relay.wait_until("laps go on", SOON, |m| m.sum("outboxd_swept_total", &[]) > 100.0).await;
    let metrics = relay.metrics().await.unwrap();
    assert_eq!(metrics.sum("outboxd_stranded_total", &[]), 4.0, "each is found once");
    assert!(metrics.sum("outboxd_sweep_lap_age_seconds", &[]) < 5.0);
    assert_eq!(number(&mut connection, "select found from outbox.sweep").await, 7);
    let audit = "select count(*) from outbox.held_action where kind = 'sweep' and reason_held = 'stranded'";
    assert_eq!(number(&mut connection, audit).await, 7);
    let account = place.account().await;
    account.assert_all_published(0);
    assert_eq!(account.records, 27);
}

/// Sweeps as the present leader, whoever it is, without a pause. Returns how many turns there were and what they found.
async fn ghost(url: String, rows: u32, stop: CancellationToken) -> (u64, Vec<i64>) {
    let config = PostgresConfig::from_url(&url, SchemaName::default(), "ghost").unwrap();
    let outbox = PostgresOutbox::new(config);
    let mut connection = PgConnection::connect(&url).await.unwrap();
    let (mut turns, mut found) = (0, Vec::new());
    while !stop.is_cancelled() {
        let (epoch, nonce): (i64, Option<Uuid>) = sqlx::query_as("select epoch, nonce from outbox.cursor")
            .fetch_one(&mut connection)
            .await
            .unwrap();
        let term = Term { epoch, nonce: nonce.unwrap_or_default(), keep_every: Duration::from_secs(1) };
        match outbox.sweep(term, rows, &Routes::default()).await {
            Ok(swept) => {
                turns += 1;
                found.extend(swept.stranded.iter().map(|stranded| stranded.seq.0));
            }
            Err(OutboxError::Fenced) => {}
            Err(error) => panic!("{}", outboxd_engine::chain(&error)),
        }
    }
    (turns, found)
}

/// D1. Small settles, late commits in bulk, held and released messages, relays that are killed: whatever a sweep meets on its way has a
/// verdict or is above the cursor.
#[tokio::test]
async fn a_sweep_without_a_pause_accuses_nobody_while_relays_are_killed_under_load() {
    let database = Database::create().await;
    let place = Place::install(&database.url(), &shared::kafka(), "unaccused").await;
    let late_topic = kafka::unique_topic("unaccused-late");
    let stop = CancellationToken::new();
    let mut ghosts = JoinSet::new();
    for rows in [40, 20_000] {
        ghosts.spawn(ghost(place.url.clone(), rows, stop.clone()));
    }
    let mut workload = Workload::new(&[place.topic.clone(), late_topic.clone()], 31);
    workload.bulk =
        Some(Bulk { rows: 2_000, open_max: Duration::from_millis(300), pause: Duration::from_millis(200) });
    let setup = place
        .little_in_flight()
        .set("relay.settle_every_ms", 1)
        .set("purge.every_ms", 10)
        .set("purge.keep_receipts_days", 30);
    let mut relay = setup.start().await;
    relay.leads(SOON).await;
    let writing = workload.start(&place.url).await;
    for kill in 0..3 {
        relay.wait_until("it gets on", SOON, |m| m.sum("outboxd_dispatched_total", &[]) > 300.0).await;
        if kill == 1 {
            kafka::create_topic(&place.bootstrap, &late_topic, 3, &[]).await;
        }
        relay.kill_9().await;
        relay = setup.start().await;
        relay.leads(SOON).await;
    }
    relay.wait_until("it gets on", SOON, |m| m.sum("outboxd_dispatched_total", &[]) > 1_000.0).await;
    writing.stop().await;
    checker::dealt_with(&place.url, SOON).await;
    relay.wait_until("released", SOON, |m| m.sum("outboxd_held_messages", &[]) < 1.0).await;
    stop.cancel();
    while let Some(ghost) = ghosts.join_next().await {
        let (turns, found) = ghost.unwrap();
        assert!(turns > 100, "{turns} turns");
        assert_eq!(found, Vec::<i64>::new(), "after {turns} turns");
    }
    let account = checker::account(&place.url, &place.bootstrap, &[place.topic.clone(), late_topic]).await;
    account.assert_all_published(3 * IN_FLIGHT);
}
