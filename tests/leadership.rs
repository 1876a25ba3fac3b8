//! One relay leads, any number stand by; whatever happens to the leader, nothing is lost or settled twice.

use std::time::Duration;

use outboxd_testkit::postgres::Database;
use outboxd_testkit::relay::{Relay, eventually};
use outboxd_testkit::shared;
use outboxd_testkit::workload::Workload;
use sqlx::PgConnection;
use tokio::time::Instant;

use crate::support::{IN_FLIGHT, Place, SOON};

async fn epoch(connection: &mut PgConnection) -> i64 {
    sqlx::query_scalar("select epoch from outbox.cursor").fetch_one(connection).await.unwrap()
}

/// D1, D3. The lock of a killed leader is free as soon as its connection is gone; a standby polls for it.
#[tokio::test]
async fn a_standby_dispatches_within_two_seconds_of_the_leaders_kill() {
    let database = Database::create().await;
    let place = Place::install(&database.url(), &shared::kafka(), "kill-leader").await;
    let mut leader = place.little_in_flight().start().await;
    leader.leads(SOON).await;
    let mut standby = place.little_in_flight().start().await;
    standby
        .wait_until("the second stands by", SOON, |metrics| {
            metrics.has("outboxd_leader") && metrics.sum("outboxd_leader", &[]) == 0.0
        })
        .await;
    let writing = Workload::new(std::slice::from_ref(&place.topic), 1).start(&database.url()).await;
    leader.wait_until("some are dispatched", SOON, |m| m.sum("outboxd_dispatched_total", &[]) > 50.0).await;
    leader.kill_9().await;
    let killed_at = Instant::now();
    standby
        .wait_until("the standby dispatches", SOON, |m| m.sum("outboxd_dispatched_total", &[]) > 0.0)
        .await;
    let took = killed_at.elapsed();
    assert!(took < Duration::from_secs(2), "it took {took:?}");
    writing.stop().await;
    place.account().await.assert_all_published(IN_FLIGHT);
    standby.expect_no_surprises(&[]);
}

/// D1, D3. The kernel of a frozen process goes on answering keepalives, so its session must be ended by the server; when it
/// wakes up, whatever it believes to know is void.
#[tokio::test]
async fn a_frozen_leader_is_replaced_and_refused_when_it_wakes_up() {
    let database = Database::create().await;
    let place = Place::install(&database.url(), &shared::kafka(), "freeze-leader").await;
    const LEAD_SESSION: Duration = Duration::from_millis(1_500);
    let setup = place.little_in_flight().set("relay.lead_session_ms", LEAD_SESSION.as_millis());
    let mut frozen = setup.start().await;
    frozen.leads(SOON).await;
    let mut other = setup.start().await;
    let mut connection = database.connect().await;
    let first = epoch(&mut connection).await;
    let writing = Workload::new(std::slice::from_ref(&place.topic), 2).start(&database.url()).await;
    frozen.wait_until("some are dispatched", SOON, |m| m.sum("outboxd_dispatched_total", &[]) > 50.0).await;
    frozen.pause();
    // The server ends the session, the standby polls, and both share two cores with other tests.
    other.leads(3 * LEAD_SESSION).await;
    assert_eq!(epoch(&mut connection).await, first + 1);
    other.wait_until("the other dispatches", SOON, |m| m.sum("outboxd_dispatched_total", &[]) > 50.0).await;
    frozen.resume();
    frozen.wait_until("it stands by", SOON, |m| m.sum("outboxd_leader", &[]) == 0.0).await;
    // librdkafka's threads are called rdk:...; it had a producer and a client that reads topics' configurations.
    eventually("it has no client of Kafka left", SOON, async || {
        (!frozen.threads().iter().any(|name| name.starts_with("rdk:"))).then_some(())
    })
    .await;
    writing.stop().await;
    let account = place.account().await;
    account.assert_all_published(IN_FLIGHT);
    assert_eq!(epoch(&mut connection).await, first + 1, "the frozen one took no term of its own");
}

/// D1, D3. A leader whose session lives on while another one has taken a term: what it settles is refused, and it starts anew from
/// what was settled.
#[tokio::test]
async fn a_settle_of_a_term_that_is_over_is_refused_by_the_database() {
    let database = Database::create().await;
    let place = Place::install(&database.url(), &shared::kafka(), "fenced").await;
    let mut relay = place.setup.start().await;
    relay.leads(SOON).await;
    place.emit("k", "1").await;
    relay.wait_until("it is dispatched", SOON, |m| m.sum("outboxd_dispatched_total", &[]) == 1.0).await;
    let mut connection = database.connect().await;
    let first = epoch(&mut connection).await;
    // What another leader does first. The relay reads and publishes until it settles or looks after its lead.
    sqlx::query("update outbox.cursor set epoch = epoch + 1, nonce = gen_random_uuid()")
        .execute(&mut connection)
        .await
        .unwrap();
    place.emit("k", "2").await;
    let metrics = relay
        .wait_until("it is refused and leads anew", SOON, |m| {
            m.sum("outboxd_settles_refused_total", &[]) >= 1.0
                && m.sum("outboxd_dispatched_total", &[]) == 2.0
        })
        .await;
    assert_eq!(metrics.sum("outboxd_settles_refused_total", &[]), 1.0);
    assert_eq!(epoch(&mut connection).await, first + 2);
    place.account().await.assert_all_published(1);
    relay.expect_no_surprises(&["another relay has taken the lead"]);
}

/// A session that sits in a snapshot pins vacuum for the whole cluster. Who stands by has one session and no producer.
#[tokio::test]
async fn no_idle_connection_of_ours_holds_a_snapshot_and_each_relay_keeps_its_share() {
    let database = Database::create().await;
    let place = Place::install(&database.url(), &shared::kafka(), "sessions").await;
    let mut leader = place.setup.start().await;
    leader.leads(SOON).await;
    let mut connection = database.connect().await;
    place.emit("a", "1").await;
    leader.wait_until("it is dispatched", SOON, |m| m.sum("outboxd_dispatched_total", &[]) == 1.0).await;
    assert!(sessions(&mut connection).await.len() <= 4);
    let before = sessions(&mut connection).await.len();
    let mut standby = place.setup.start().await;
    standby
        .wait_until("it stands by and has measured", SOON, |metrics| metrics.has("outboxd_backlog_messages"))
        .await;
    // librdkafka's threads are called rdk:...
    let has_producer = |relay: &Relay| relay.threads().iter().any(|name| name.starts_with("rdk:"));
    assert!(has_producer(&leader), "{:?}", leader.threads());
    assert!(!has_producer(&standby), "{:?}", standby.threads());
    for look in 0..100 {
        let sessions = sessions(&mut connection).await;
        assert!(sessions.len() <= before + 1, "look {look}: {sessions:?}");
        let pinning: Vec<_> = sessions.iter().filter(|(state, pins)| state == "idle" && *pins).collect();
        assert!(pinning.is_empty(), "look {look}: {pinning:?}");
    }
}

/// Sessions of relays on this database: their state, and whether they hold back vacuum.
async fn sessions(connection: &mut PgConnection) -> Vec<(String, bool)> {
    sqlx::query_as(
        "select coalesce(state, ''), backend_xmin is not null from pg_stat_activity
         where datname = current_database() and application_name like 'outboxd%'",
    )
    .fetch_all(connection)
    .await
    .unwrap()
}

/// D1. `pg_terminate_backend` on a session that the leader reads, publishes or settles by costs a term and nothing else.
#[tokio::test]
async fn a_leader_whose_sessions_are_ended_leads_again_and_loses_nothing() {
    let database = Database::create().await;
    let place = Place::install(&database.url(), &shared::kafka(), "terminate").await;
    let mut relay = place.little_in_flight().start().await;
    relay.leads(SOON).await;
    let mut connection = database.connect().await;
    let writing = Workload::new(std::slice::from_ref(&place.topic), 3).start(&database.url()).await;
    for (round, purpose) in (1_u32..).zip(["lead", "read", "durable", "lead", "read"]) {
        let target = f64::from(round) * 40.0;
        relay
            .wait_until("more are dispatched", SOON, |m| m.sum("outboxd_dispatched_total", &[]) > target)
            .await;
        let before = epoch(&mut connection).await;
        // It is opened a moment after the lead is taken.
        eventually(&format!("a session named {purpose}"), SOON, async || {
            terminate(&mut connection, purpose).await.then_some(())
        })
        .await;
        eventually("a new term", SOON, async || {
            (epoch(&mut database.connect().await).await > before).then_some(())
        })
        .await;
    }
    writing.stop().await;
    place.account().await.assert_all_published(5 * IN_FLIGHT);
    relay.expect_no_surprises(&["the database is not available"]);
}

/// D1. The session for housekeeping has nothing that a message depends on: it is opened again and nobody else notices.
#[tokio::test]
async fn a_leader_whose_housekeeping_session_is_ended_goes_on_leading() {
    let database = Database::create().await;
    let place = Place::install(&database.url(), &shared::kafka(), "housekeeping").await;
    let mut relay = place.setup.start().await;
    relay.leads(SOON).await;
    let mut connection = database.connect().await;
    let first = epoch(&mut connection).await;
    for round in 1..=3_u32 {
        // By the second round the leader has seen that nothing is held, and asks this session for figures alone.
        if round > 1 {
            eventually("a session for housekeeping", SOON, async || {
                terminate(&mut connection, "rest").await.then_some(())
            })
            .await;
        }
        place.emit("k", &round.to_string()).await;
        relay
            .wait_until("it is dispatched", SOON, |m| {
                m.sum("outboxd_dispatched_total", &[]) >= f64::from(round)
            })
            .await;
    }
    place.account().await.assert_all_published(0);
    assert_eq!(epoch(&mut connection).await, first, "it is the same term");
}

/// Ends a session of the relay. Whether there was one.
async fn terminate(connection: &mut PgConnection, purpose: &str) -> bool {
    let ended: Option<bool> = sqlx::query_scalar(
        "select pg_terminate_backend(pid) from pg_stat_activity
         where datname = current_database() and application_name like 'outboxd ' || $1 || ' %' limit 1",
    )
    .bind(purpose)
    .fetch_optional(connection)
    .await
    .unwrap();
    ended.is_some()
}
