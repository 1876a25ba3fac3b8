//! An outage is not poison: whichever side is down, and however, messages wait, uncharged, and then go out.

use std::time::Duration;

use outboxd_testkit::checker;
use outboxd_testkit::kafka::{self, Broker};
use outboxd_testkit::postgres::{self, Database, Mode, Server};
use outboxd_testkit::relay::{Metrics, Relay};
use outboxd_testkit::workload::{Workload, Writing};
use sqlx::{Connection, PgConnection};
use tokio::time::Instant;

use crate::support::{Place, SOON};

/// What a relay may say about an outage: once that it began, and what the client libraries said about it.
pub(crate) const OUTAGE_LINES: [&str; 5] = [
    "kafka is not available",
    "database is not available",
    "Kafka connection in trouble",
    "librdkafka: ",
    "terminating connection due to",
];
/// Messages between read and settled: what going back to the settled cursor may duplicate.
const IN_FLIGHT: u64 = 1_000;

async fn broker() -> Broker {
    Broker::start(kafka::Options::default()).await.unwrap()
}

fn out(metrics: &Metrics, side: &str) -> bool {
    metrics.sum("outboxd_outage", &[("side", side)]) == 1.0
}

/// No attempt is charged, nothing is held or parked: neither now nor ever since the relay started.
async fn assert_nobody_was_blamed(place: &Place, relay: &Relay) {
    let metrics = relay.metrics().await.unwrap();
    for outcome in ["try_alone", "retry", "hold_topic", "parked"] {
        assert_eq!(metrics.sum("outboxd_attempts_total", &[("outcome", outcome)]), 0.0, "{metrics}");
    }
    assert_eq!(metrics.sum("outboxd_held_total", &[]), 0.0, "{metrics}");
    assert_eq!(metrics.sum("outboxd_parked_total", &[]), 0.0, "{metrics}");
    let mut connection = PgConnection::connect(&place.url).await.unwrap();
    let held: i64 =
        sqlx::query_scalar("select count(*) from outbox.held").fetch_one(&mut connection).await.unwrap();
    assert_eq!(held, 0);
}

async fn start(place: &Place, outage_after_ms: u32) -> (Relay, Writing) {
    let mut relay = place
        .setup
        .clone()
        .set("relay.outage_after_ms", outage_after_ms)
        .set("relay.page_messages", 200)
        .set("relay.in_flight_messages", IN_FLIGHT)
        .start()
        .await;
    let mut workload = Workload::new(std::slice::from_ref(&place.topic), 41);
    workload.pause_max = Duration::from_millis(20);
    workload.asynchronous = true;
    let writing = workload.start(&place.url).await;
    relay.wait_until("it dispatches", SOON, |m| m.sum("outboxd_dispatched_total", &[]) > 50.0).await;
    (relay, writing)
}

/// Stops the writers, waits until all is dispatched and draws the balance.
async fn finish(place: &Place, mut relay: Relay, writing: Writing, duplicates_max: u64) {
    writing.stop().await;
    checker::dealt_with(&place.url, SOON).await;
    let account = checker::account(&place.url, &place.bootstrap, std::slice::from_ref(&place.topic)).await;
    eprintln!("{account}");
    account.assert_all_published(duplicates_max);
    let metrics =
        relay.wait_until("no outage is left", SOON, |m| !out(m, "kafka") && !out(m, "database")).await;
    assert!(metrics.sum("outboxd_outages_total", &[]) >= 1.0, "{metrics}");
    assert_nobody_was_blamed(place, &relay).await;
    relay.expect_no_surprises(&OUTAGE_LINES);
}

/// D1, D3, D4.
#[tokio::test]
async fn a_broker_that_is_down_for_a_minute_parks_nothing_and_charges_nobody() {
    const DOWN_FOR: Duration = Duration::from_secs(60);
    let database = Database::create().await;
    let mut broker = broker().await;
    let place = Place::install(&database.url(), &broker.bootstrap(), "down").await;
    let (mut relay, writing) = start(&place, 5_000).await;
    broker.stop().await.unwrap();
    let down_at = Instant::now();
    relay.wait_until("the outage is seen", SOON, |m| out(m, "kafka")).await;
    let metrics = relay
        .wait_until("the minute is over", DOWN_FOR + SOON, |m| {
            assert!(out(m, "kafka"), "it stays an outage: {m}");
            down_at.elapsed() >= DOWN_FOR
        })
        .await;
    assert!(metrics.sum("outboxd_oldest_undelivered_age_seconds", &[]) > 30.0, "the SLI tells: {metrics}");
    assert_eq!(relay.get("/livez").await.map(|(code, _)| code), Some(200));
    assert_eq!(relay.get("/readyz").await.map(|(code, _)| code), Some(200));
    assert_nobody_was_blamed(&place, &relay).await;
    broker.start_again().await.unwrap();
    relay.wait_until("the outage is over", SOON, |m| !out(m, "kafka")).await;
    finish(&place, relay, writing, 2 * IN_FLIGHT).await;
}

/// D1, D3, D4. Connections stay open and nothing is answered; what was sent may be in the log.
#[tokio::test]
async fn a_frozen_broker_is_an_outage_and_what_it_took_before_is_at_most_repeated() {
    let database = Database::create().await;
    let broker = broker().await;
    let place = Place::install(&database.url(), &broker.bootstrap(), "frozen").await;
    let (mut relay, writing) = start(&place, 2_000).await;
    for round in 1..=2_u32 {
        broker.pause().unwrap();
        relay.wait_until("the outage is seen", SOON, |m| out(m, "kafka")).await;
        broker.resume().unwrap();
        let metrics = relay.wait_until("the outage is over", SOON, |m| !out(m, "kafka")).await;
        let outages = metrics.sum("outboxd_outages_total", &[("side", "kafka")]);
        assert!(outages >= f64::from(round), "{metrics}");
    }
    finish(&place, relay, writing, 4 * IN_FLIGHT).await;
}

/// D1, D2, D3, D4. Fast: sessions are ended in order. Immediate: as a crash; commits that were not yet on disk are gone, and
/// none of them was published.
#[tokio::test]
async fn a_database_that_restarts_or_crashes_under_load_costs_duplicates_at_most() {
    let mut server =
        Server::start(postgres::Options::default().setting("wal_writer_delay", "10s")).await.unwrap();
    let broker = broker().await;
    let place = Place::install(&server.url("postgres"), &broker.bootstrap(), "restart").await;
    let (mut relay, writing) = start(&place, 5_000).await;
    for mode in [Mode::Fast, Mode::Immediate, Mode::Immediate] {
        let before = relay.metrics().await.unwrap().sum("outboxd_dispatched_total", &[]);
        server.stop(mode).await.unwrap();
        relay.wait_until("the outage is seen", SOON, |m| out(m, "database")).await;
        server.start_again().await.unwrap();
        relay
            .wait_until("it dispatches again", SOON, |m| {
                !out(m, "database") && m.sum("outboxd_dispatched_total", &[]) > before + 50.0
            })
            .await;
    }
    finish(&place, relay, writing, 3 * IN_FLIGHT).await;
}

/// D1, D3, D4.
#[tokio::test]
async fn both_sides_down_at_once_and_back_in_either_order_lose_nothing() {
    let mut server = Server::start(postgres::Options::default()).await.unwrap();
    let mut broker = broker().await;
    let place = Place::install(&server.url("postgres"), &broker.bootstrap(), "both").await;
    let (mut relay, writing) = start(&place, 2_000).await;
    for database_first in [true, false] {
        let before = relay.metrics().await.unwrap().sum("outboxd_dispatched_total", &[]);
        broker.stop().await.unwrap();
        relay.wait_until("Kafka is seen to be out", SOON, |m| out(m, "kafka")).await;
        server.stop(Mode::Fast).await.unwrap();
        relay.wait_until("both are seen to be out", SOON, |m| out(m, "database")).await;
        if database_first {
            server.start_again().await.unwrap();
            relay.wait_until("the database is back", SOON, |m| !out(m, "database")).await;
            broker.start_again().await.unwrap();
        } else {
            broker.start_again().await.unwrap();
            server.start_again().await.unwrap();
        }
        relay
            .wait_until("it dispatches again", SOON, |m| {
                !out(m, "database")
                    && !out(m, "kafka")
                    && m.sum("outboxd_dispatched_total", &[]) > before + 50.0
            })
            .await;
    }
    finish(&place, relay, writing, 4 * IN_FLIGHT).await;
}
