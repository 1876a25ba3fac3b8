//! What a database can do to a relay: crash, freeze, rewrite its tables.

use std::collections::BTreeSet;
use std::time::Duration;

use outboxd_testkit::postgres::{Database, Options, Server};
use outboxd_testkit::proxy::Proxy;
use outboxd_testkit::relay::eventually;
use outboxd_testkit::workload::Workload;
use outboxd_testkit::{kafka, shared};
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use crate::support::{IN_FLIGHT, Place, SOON, emit_on};

/// D2. A row written under `synchronous_commit = off` is visible before it is on disk. Without the barrier it would be published
/// and then taken back by the crash.
#[tokio::test]
async fn nothing_is_published_that_a_database_crash_takes_back() {
    const ROUNDS: usize = 5;
    let settings = Options::default().setting("wal_writer_delay", "10s").setting("synchronous_commit", "off");
    let mut server = Server::start(settings).await.unwrap();
    let place = Place::install(&server.url("postgres"), &shared::kafka(), "phantom").await;
    let mut relay = place.setup.start().await;
    let mut published = BTreeSet::new();
    for round in 0..ROUNDS {
        relay.leads(SOON).await;
        let mut application = PgConnection::connect(&place.url).await.unwrap();
        for nth in 0..20 {
            emit_on(&mut application, &place.topic, "k", &format!("{round}-{nth}")).await;
        }
        let known = published.len();
        let records = eventually("records of this round", SOON, async || {
            let records = kafka::read_all(&place.bootstrap, &place.topic).await;
            (records.len() > known).then_some(records)
        })
        .await;
        server.kill_9().await.unwrap();
        published.extend(records.iter().map(|record| record.id()));
        server.start_again().await.unwrap();
    }
    let records = kafka::read_all(&place.bootstrap, &place.topic).await;
    published.extend(records.iter().map(|record| record.id()));
    let mut database = PgConnection::connect(&place.url).await.unwrap();
    let committed: Vec<Uuid> =
        sqlx::query_scalar("select id from outbox.message").fetch_all(&mut database).await.unwrap();
    let committed: BTreeSet<Uuid> = committed.into_iter().collect();
    let phantoms: Vec<_> = published.difference(&committed).collect();
    assert!(phantoms.is_empty(), "{} of {} published: {phantoms:?}", phantoms.len(), published.len());
    place.account().await.assert_clean(1_000);
}

/// D1, D4. Old connections are dead without anybody saying so; new ones work.
#[tokio::test]
async fn a_frozen_link_to_the_database_is_left_within_seconds_and_no_connection_leaks() {
    let database = Database::create().await;
    let place = Place::install(&database.url(), &shared::kafka(), "frozen-link").await;
    let (_, address) =
        database.url().split_once('@').map(|(user, rest)| (user.to_owned(), rest.to_owned())).unwrap();
    let (address, _) = address.split_once('/').unwrap();
    let proxy = Proxy::start(address).await.unwrap();
    let through = database.url().replace(address, &proxy.address());
    let setup = place.setup.clone().set("database.url", &through).set("relay.lead_session_ms", 2_000);
    let mut relay = setup.start().await;
    relay.leads(SOON).await;
    let mut connection = database.connect().await;
    for round in 1..=3_u32 {
        proxy.freeze_existing();
        place.emit("k", &round.to_string()).await;
        relay
            .wait_until("it dispatches again", Duration::from_secs(30), |metrics| {
                metrics.sum("outboxd_dispatched_total", &[]) >= f64::from(round)
            })
            .await;
    }
    // The server has heard of no end yet. Once the link moves again it hears that the relay has closed all that it gave up.
    proxy.thaw();
    eventually("no more than a relay's share of connections", SOON, async || {
        let sessions: i64 = sqlx::query_scalar(
            "select count(*) from pg_stat_activity where datname = current_database() and application_name like 'outboxd%'",
        )
        .fetch_one(&mut connection)
        .await
        .unwrap();
        (sessions <= 4).then_some(())
    })
    .await;
    place.account().await.assert_all_published(100);
    relay.expect_no_surprises(&["the database is not available"]);
}

/// D1. A page that queued behind a rewrite must not come back empty with a snapshot that has passed its rows.
#[tokio::test]
async fn a_rewriting_alter_table_while_pages_are_read_loses_nothing() {
    let database = Database::create().await;
    let place = Place::install(&database.url(), &shared::kafka(), "rewrite").await;
    let mut relay = place.little_in_flight().start().await;
    relay.leads(SOON).await;
    let writing = Workload::new(std::slice::from_ref(&place.topic), 4).start(&database.url()).await;
    let mut operator = database.connect().await;
    for round in 1..=6_u32 {
        let target = f64::from(round) * 30.0;
        relay
            .wait_until("more are dispatched", SOON, |m| m.sum("outboxd_dispatched_total", &[]) > target)
            .await;
        // A volatile default rewrites the table under an ACCESS EXCLUSIVE lock.
        let statement = if round % 2 == 1 {
            "alter table outbox.message add column rewritten uuid default gen_random_uuid()"
        } else {
            "alter table outbox.message drop column rewritten"
        };
        sqlx::raw_sql(statement).execute(&mut operator).await.unwrap();
        sqlx::raw_sql("vacuum full outbox.message").execute(&mut operator).await.unwrap();
    }
    writing.stop().await;
    place.account().await.assert_all_published(6 * IN_FLIGHT);
}
