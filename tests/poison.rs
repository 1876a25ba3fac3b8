//! A message that ends the relay's process is found out and parked, so that all others arrive; a process that is killed from outside
//! says nothing about any message.

use std::os::unix::process::ExitStatusExt;

use outboxd_testkit::checker;
use outboxd_testkit::kafka::{self, Broker};
use outboxd_testkit::postgres::Database;
use outboxd_testkit::relay::{Relay, Setup, eventually};
use outboxd_testkit::shared;
use serde_json::Value;
use sqlx::{Connection, SqliteConnection};

use crate::support::{BINARY, Place, SOON, emit_on};

/// The header that ends the process, where the failpoint says so.
const DEADLY: &str = "record:deadly";
const SIGABRT: i32 = 6;
/// What a supervisor sees before the message is parked: three relays that settle nothing, then two that name it.
const RESTARTS_MAX: u32 = 6;
const PARKED: &str = "message is parked";

/// Restarts the relay, as a supervisor does, until one has lived to park something. Returns it and how many have ended.
async fn restarted_until_parked(setup: &Setup) -> (Relay, u32) {
    let setup = setup.clone().variable("OUTBOXD_FAILPOINT", DEADLY);
    for ended in 0..=RESTARTS_MAX {
        let mut relay = setup.spawn();
        let parked = async || {
            if let Some(status) = relay.exited() {
                assert_eq!(status.signal(), Some(SIGABRT), "{status}");
                return Some(false);
            }
            let held = held(&setup).await;
            held.iter().any(|message| message["reason"] == "crashes_relay").then_some(true)
        };
        if eventually("the relay parks the message or ends", SOON, parked).await {
            return (relay, ended);
        }
        relay.expect_no_surprises(&[]);
    }
    panic!("{RESTARTS_MAX} restarts were not enough");
}

async fn held(setup: &Setup) -> Vec<Value> {
    let listed = setup.run_json(&["held", "list", "--limit", "0", "--output", "json"]).await;
    listed.as_array().expect("an array").clone()
}

/// D1, D3. Found within a handful of restarts, parked alone, and retried when the cause is gone; its key waits meanwhile.
#[tokio::test]
async fn a_message_that_aborts_the_relay_is_parked_within_a_few_restarts_and_nothing_else_is() {
    let database = Database::create().await;
    let place = Place::install(&database.url(), &shared::kafka(), "deadly").await;
    let mut connection = database.connect().await;
    for n in 0..300 {
        let headers = if n == 101 { r#"{"deadly": "yes"}"# } else { "{}" };
        sqlx::query(
            "insert into outbox.message (topic, key, payload, headers) values ($1, $2, convert_to($3, 'UTF8'), $4::jsonb)",
        )
        .bind(&place.topic)
        .bind(format!("k{}", n % 10))
        .bind(format!("{{\"n\": {n}}}"))
        .bind(headers)
        .execute(&mut connection)
        .await
        .unwrap();
    }
    let (mut relay, ended) = restarted_until_parked(&place.setup).await;
    eprintln!("{ended} relays ended before the message was parked");
    let account = place.account().await;
    account.assert_clean(2_000);
    let held = held(&place.setup).await;
    let parked: Vec<&Value> = held.iter().filter(|message| message["state"] == "parked").collect();
    assert_eq!((parked.len(), held.len()), (1, 20), "the message and the 19 of its key behind it");
    assert_eq!(parked[0]["reason"], "crashes_relay");
    assert_eq!(parked[0]["attempts"], 2);
    relay.expect_no_surprises(&[PARKED]);
    assert!(relay.terminate(SOON).await.success());

    // The cause is gone: another version of the relay.
    let mut mended = place.setup.start().await;
    let id = parked[0]["id"].as_str().unwrap();
    place.setup.run_ok(&["held", "retry", id, "--reason", "runs on a version that survives it"]).await;
    mended
        .wait_until("it and those behind it go", SOON, |m| m.sum("outboxd_dispatched_total", &[]) >= 20.0)
        .await;
    place.account().await.assert_all_published(2_000);
    mended.expect_no_surprises(&[]);
    assert!(mended.terminate(SOON).await.success());
}

/// D1, D3.
#[tokio::test]
async fn a_message_that_aborts_the_relay_is_parked_in_a_sqlite_outbox_too() {
    let directory = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", directory.path().join("shop.db").display());
    let topic = kafka::unique_topic("deadly-sqlite");
    kafka::create_topic(&shared::kafka(), &topic, 1, &[]).await;
    // Short, because a lease is what a relay that ended leaves behind.
    let setup = Setup::new(BINARY, &url, &shared::kafka()).set("relay.lead_session_ms", 1_000);
    setup.run_ok(&["migrate"]).await;
    let mut connection = SqliteConnection::connect(&url).await.unwrap();
    for n in 0..30 {
        let headers = (n == 11).then_some(r#"{"deadly": "yes"}"#);
        sqlx::query("insert into outbox_message (topic, key, payload, headers) values (?, ?, ?, ?)")
            .bind(&topic)
            .bind(format!("k{}", n % 10))
            .bind(n.to_string())
            .bind(headers)
            .execute(&mut connection)
            .await
            .unwrap();
    }
    let (mut relay, _) = restarted_until_parked(&setup).await;
    let records = async || {
        let records = kafka::read_all(&shared::kafka(), &topic).await;
        let mut payloads: Vec<u32> = records
            .iter()
            .map(|record| String::from_utf8_lossy(record.payload.as_deref().unwrap()).parse().unwrap())
            .collect();
        payloads.sort_unstable();
        payloads.dedup();
        (payloads.len() == 28).then_some(payloads)
    };
    let payloads = eventually("all others arrive", SOON, records).await;
    assert!(!payloads.contains(&11) && !payloads.contains(&21), "it and the one behind it are held");
    assert_eq!(held(&setup).await.len(), 2);
    assert!(relay.terminate(SOON).await.success());
}

/// D1, D3, D4. Neither before nor after the relay has something in flight.
#[tokio::test]
async fn ten_kills_during_a_kafka_outage_park_nothing() {
    let database = Database::create().await;
    let mut broker = Broker::start(kafka::Options::default()).await.unwrap();
    let place = Place::install(&database.url(), &broker.bootstrap(), "kills").await;
    let mut connection = database.connect().await;
    let emit = async |connection: &mut sqlx::PgConnection, n: u32| {
        emit_on(connection, &place.topic, &format!("k{}", n % 3), &format!("{{\"n\": {n}}}")).await;
    };
    let mut running = place.setup.start().await;
    emit(&mut connection, 0).await;
    running.wait_until("it dispatches", SOON, |m| m.sum("outboxd_dispatched_total", &[]) >= 1.0).await;
    broker.pause().unwrap();
    for n in 1..40 {
        emit(&mut connection, n).await;
    }
    running
        .wait_until("messages are in flight", SOON, |m| m.sum("outboxd_in_flight_messages", &[]) >= 39.0)
        .await;
    running.kill_9().await;
    for _ in 0..9 {
        let mut relay = place.setup.start().await;
        relay.leads(SOON).await;
        relay.kill_9().await;
    }
    broker.resume().unwrap();
    let mut last = place.setup.start().await;
    place.account().await.assert_all_published(40);
    assert!(held(&place.setup).await.is_empty());
    let metrics = last.metrics().await.unwrap();
    assert_eq!(metrics.sum("outboxd_parked_total", &[]), 0.0);
    assert!(last.terminate(SOON).await.success());
    broker.stop().await.unwrap();
}

/// D4. Nothing to do is no failure: the relay that follows publishes as fast as ever.
#[tokio::test]
async fn kills_of_an_idle_relay_do_not_slow_the_next_one_down() {
    const MESSAGES: u32 = 500;
    let database = Database::create().await;
    let place = Place::install(&database.url(), &shared::kafka(), "idle-kills").await;
    for _ in 0..6 {
        let mut relay = place.setup.start().await;
        relay.leads(SOON).await;
        relay.kill_9().await;
    }
    let mut relay = place.setup.start().await;
    relay.leads(SOON).await;
    let is_at_full_speed =
        async || relay.logged().iter().any(|line| line.text.contains("at full speed")).then_some(());
    eventually("there is no reason for caution", SOON, is_at_full_speed).await;
    sqlx::query(
            "insert into outbox.message (topic, key, payload) select $1, 'k' || g % 7, '{}' from generate_series(1, $2) g",
        )
        .bind(&place.topic)
        .bind(i32::try_from(MESSAGES).unwrap())
        .execute(&mut database.connect().await)
        .await
        .unwrap();
    checker::dealt_with(&place.url, SOON).await;
    let metrics = relay
        .wait_until("all are dispatched", SOON, |m| {
            m.sum("outboxd_dispatched_total", &[]) >= f64::from(MESSAGES)
        })
        .await;
    let settles = metrics.sum("outboxd_settle_seconds_count", &[]);
    assert!(settles < f64::from(MESSAGES) / 5.0, "{settles} settles: one message at a time\n{metrics}");
    assert!(relay.terminate(SOON).await.success());
}
