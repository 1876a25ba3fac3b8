//! Intents that name a time: they leave then, and until then nobody notices them.

use std::collections::BTreeMap;

use outboxd_testkit::checker;
use outboxd_testkit::kafka;
use outboxd_testkit::postgres::{Database, Mode, Options, Server};
use outboxd_testkit::relay::eventually;
use outboxd_testkit::shared;
use serde_json::Value;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::failover::{Address, has_it_all};
use crate::support::{Place, SOON, emit_on};

/// Due messages leave within a second of their time.
const LATE_AT_MOST_MS: i64 = 1_000;

/// Emits an intent that is due so many seconds from now.
async fn emit_later(connection: &mut PgConnection, topic: &str, key: &str, seconds: f64) -> Uuid {
    sqlx::query_scalar(
        "select outbox.emit(topic => $1, key => $2, payload => 'later',
                            deliver_after => clock_timestamp() + make_interval(secs => $3))",
    )
    .bind(topic)
    .bind(key)
    .bind(seconds)
    .fetch_one(connection)
    .await
    .unwrap()
}

async fn cancel(connection: &mut PgConnection, id: Uuid) -> bool {
    sqlx::query_scalar("select outbox.cancel($1)").bind(id).fetch_one(connection).await.unwrap()
}

/// When each record of the topic was published, in milliseconds since 1970, and the time that its intent names.
async fn lateness_ms(place: &Place) -> BTreeMap<Uuid, i64> {
    let mut connection = connect(place).await;
    let due: Vec<(Uuid, i64)> = sqlx::query_as(
        "select id, (extract(epoch from deliver_after) * 1000)::bigint from outbox.message where deliver_after is not null",
    )
    .fetch_all(&mut connection)
    .await
    .unwrap();
    let due: BTreeMap<Uuid, i64> = due.into_iter().collect();
    let records = kafka::read_all(&place.bootstrap, &place.topic).await;
    records
        .iter()
        .filter_map(|record| Some((record.id(), record.timestamp? - due.get(&record.id())?)))
        .collect()
}

async fn connect(place: &Place) -> PgConnection {
    use sqlx::Connection as _;
    PgConnection::connect(&place.url).await.unwrap()
}

/// D1. Also of a relay that is killed in between: the standby knows what it knew.
#[tokio::test]
async fn scheduled_intents_leave_at_their_time_and_not_before_across_a_kill_of_the_leader() {
    let database = Database::create().await;
    let place = Place::install(&database.url(), &shared::kafka(), "later").await;
    let mut connection = database.connect().await;
    let mut leader = place.setup.start().await;
    leader.leads(SOON).await;
    let mut standby = place.setup.start().await;
    for n in 0..120_u32 {
        emit_later(&mut connection, &place.topic, &format!("k{}", n % 7), 3.0 + f64::from(n % 30) / 10.0)
            .await;
        emit_on(&mut connection, &place.topic, &format!("k{}", n % 7), &format!("{{\"n\": {n}}}")).await;
    }
    leader.wait_until("all are scheduled", SOON, |m| m.sum("outboxd_scheduled_total", &[]) >= 120.0).await;
    leader.kill_9().await;
    standby.leads(SOON).await;
    // Their time is past, then; without the sleep of the database this would be a loop around the same question.
    sqlx::query("select pg_sleep_until((select max(deliver_after) from outbox.message))")
        .execute(&mut connection)
        .await
        .unwrap();
    eventually("all have left", SOON, async || (lateness_ms(&place).await.len() == 120).then_some(())).await;
    let lateness = lateness_ms(&place).await;
    let earliest = lateness.values().min().unwrap();
    assert!(*earliest >= 0, "a message left {earliest} ms after its time");
    let mut sorted: Vec<i64> = lateness.values().copied().collect();
    sorted.sort_unstable();
    println!("after their time: half of them within {} ms, all within {} ms", sorted[60], sorted[119]);
    assert!(sorted[119] <= LATE_AT_MOST_MS, "{sorted:?}");
    standby.wait_until("everything is settled", SOON, |m| m.sum("outboxd_held_messages", &[]) == 0.0).await;
    place.account().await.assert_all_published(120);
}

/// D1. The database crashes and is promoted while they wait, and they still leave within a second of their time.
#[tokio::test]
async fn scheduled_intents_outlive_a_crash_of_the_database_and_leave_the_promoted_standby_in_time() {
    const WAITING: u32 = 60;
    let mut primary = Server::start(Options::default()).await.unwrap();
    let mut standby = primary.standby().await.unwrap();
    let address = Address::of(primary.port()).await;
    let place = Place::install(&primary.url("postgres"), &shared::kafka(), "later").await;
    let mut relay = place.setup.clone().set("database.url", address.url()).start().await;
    relay.leads(SOON).await;
    let mut connection = connect(&place).await;
    for n in 0..WAITING {
        emit_later(&mut connection, &place.topic, &format!("k{}", n % 7), 20.0 + f64::from(n) / 50.0).await;
    }
    relay
        .wait_until("all are scheduled", SOON, |m| {
            m.sum("outboxd_scheduled_total", &[]) >= f64::from(WAITING)
        })
        .await;
    primary.stop(Mode::Immediate).await.unwrap();
    primary.start_again().await.unwrap();
    let mut connection = connect(&place).await;
    emit_on(&mut connection, &place.topic, "k", "{}").await;
    relay.wait_until("it leads again", SOON, |m| m.sum("outboxd_dispatched_total", &[]) >= 1.0).await;
    eventually("the standby has it all", SOON, async || has_it_all(&standby, &primary).await.then_some(()))
        .await;
    primary.kill_9().await.unwrap();
    standby.promote().await.unwrap();
    address.leads_to(&standby);
    let place = Place { url: standby.url("postgres"), ..place };
    let mut connection = connect(&place).await;
    emit_on(&mut connection, &place.topic, "k", "{}").await;
    relay.wait_until("it leads again", SOON, |m| m.sum("outboxd_dispatched_total", &[]) >= 2.0).await;
    let in_time: bool =
        sqlx::query_scalar("select clock_timestamp() < min(deliver_after) from outbox.message")
            .fetch_one(&mut connection)
            .await
            .unwrap();
    eventually("all have left", SOON, async || {
        (lateness_ms(&place).await.len() == WAITING as usize).then_some(())
    })
    .await;
    let mut lateness: Vec<i64> = lateness_ms(&place).await.into_values().collect();
    lateness.sort_unstable();
    assert!(lateness[0] >= 0, "{lateness:?}");
    // On a machine that took twenty seconds for both, their time was over before anybody led.
    assert!(!in_time || lateness[lateness.len() - 1] <= LATE_AT_MOST_MS, "{lateness:?}");
    relay.wait_until("everything is settled", SOON, |m| m.sum("outboxd_held_messages", &[]) == 0.0).await;
    place.account().await.assert_all_published(u64::from(WAITING));
}

/// D3. Neither do they wait for what was written before them, nor what is written after them for them.
#[tokio::test]
async fn a_scheduled_intent_blocks_nobody_and_once_due_waits_behind_what_is_held_of_its_key() {
    let database = Database::create().await;
    let place = Place::install(&database.url(), &shared::kafka(), "blocks").await;
    let mut connection = database.connect().await;
    let mut relay = place.setup.start().await;
    let soon = emit_later(&mut connection, &place.topic, "a", 2.0).await;
    let later = emit_later(&mut connection, &place.topic, "a", 3_600.0).await;
    for n in 0..20 {
        emit_on(&mut connection, &place.topic, "a", &format!("{{\"n\": {n}}}")).await;
    }
    relay.wait_until("the others are out", SOON, |m| m.sum("outboxd_dispatched_total", &[]) >= 20.0).await;
    // A head that is parked: its partition does not exist.
    sqlx::query("insert into outbox.message (topic, key, payload, partition) values ($1, 'a', 'head', 99)")
        .bind(&place.topic)
        .execute(&mut connection)
        .await
        .unwrap();
    relay.wait_until("it is parked", SOON, |m| m.sum("outboxd_parked_total", &[]) >= 1.0).await;
    let state = async |connection: &mut PgConnection, id: Uuid| -> Option<String> {
        sqlx::query_scalar("select state from outbox.held where id = $1")
            .bind(id)
            .fetch_optional(connection)
            .await
            .unwrap()
    };
    eventually("it waits behind the head", SOON, async || {
        (state(&mut connection, soon).await.as_deref() == Some("behind")).then_some(())
    })
    .await;
    let parked = place.setup.run_json(&["held", "list", "--state", "parked", "--output", "json"]).await;
    let head = parked[0]["id"].as_str().unwrap().to_owned();
    place.setup.run_ok(&["held", "discard", &head, "--reason", "no such partition"]).await;
    relay.wait_until("it is out", SOON, |m| m.sum("outboxd_dispatched_total", &[]) >= 21.0).await;
    let account = place.account().await;
    account.assert_clean(0);
    assert_eq!(
        (account.held, account.discarded),
        (1, 1),
        "one waits for its time, one was discarded: {account}"
    );
    let list = place.setup.run_json(&["scheduled", "list", "--output", "json"]).await;
    assert_eq!(list[0]["id"], Value::String(later.to_string()));
    // What waits for its time makes nothing late.
    let status = place.setup.run_json(&["status", "--output", "json"]).await;
    assert_eq!((&status["scheduled_messages"], &status["oldest_age_seconds"]), (&1.into(), &0.0.into()));
    relay.expect_no_surprises(&["message is parked"]);
}

/// D1. What is cancelled in time is never delivered, whoever cancels it and wherever the message stands then; what is too late is said.
#[tokio::test]
async fn a_scheduled_intent_is_cancelled_by_its_id_until_its_time_and_the_answer_is_true() {
    let database = Database::create().await;
    let place = Place::install(&database.url(), &shared::kafka(), "cancel").await;
    let mut connection = database.connect().await;
    // In the transaction that writes it, by another one before the relay has seen it, and one that is rolled back.
    sqlx::query("begin").execute(&mut connection).await.unwrap();
    let same = emit_later(&mut connection, &place.topic, "a", 4.0).await;
    assert!(cancel(&mut connection, same).await);
    sqlx::query("commit").execute(&mut connection).await.unwrap();
    let before = emit_later(&mut connection, &place.topic, "a", 4.0).await;
    assert!(cancel(&mut connection, before).await && cancel(&mut connection, before).await, "twice is once");
    let kept = emit_later(&mut connection, &place.topic, "a", 4.0).await;
    sqlx::query("begin").execute(&mut connection).await.unwrap();
    assert!(cancel(&mut connection, kept).await);
    sqlx::query("rollback").execute(&mut connection).await.unwrap();

    let mut relay = place.setup.start().await;
    relay.wait_until("all are scheduled", SOON, |m| m.sum("outboxd_scheduled_total", &[]) >= 3.0).await;
    let by_operator = emit_later(&mut connection, &place.topic, "a", 4.0).await;
    let cancelled = ["scheduled", "cancel", &by_operator.to_string(), "--reason", "withdrawn", "--as", "ops"];
    place.setup.run_ok(&cancelled).await;
    relay.wait_until("the one is out", SOON, |m| m.sum("outboxd_dispatched_total", &[]) >= 1.0).await;
    let audited = async || {
        let audited: Vec<(Uuid, String, String)> =
            sqlx::query_as("select id, who, why from outbox.held_action where kind = 'cancel' order by seq")
                .fetch_all(&mut database.connect().await)
                .await
                .unwrap();
        (audited.len() == 3).then_some(audited)
    };
    let audited = eventually("three are in the audit", SOON, audited).await;
    assert_eq!(audited.iter().map(|(id, ..)| *id).collect::<Vec<_>>(), [same, before, by_operator]);
    assert_eq!((audited[2].1.as_str(), audited[2].2.as_str()), ("ops", "withdrawn"));

    assert!(!cancel(&mut connection, kept).await, "its time has come");
    assert!(!cancel(&mut connection, Uuid::from_u128(7)).await, "there is none");
    let output = place.setup.run(&["scheduled", "cancel", &kept.to_string(), "--reason", "too late"]).await;
    assert_eq!(output.status.code(), Some(64));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("its time has come"), "{said}");
    let account = place.account().await;
    account.assert_clean(0);
    assert_eq!((account.records, account.discarded), (1, 3), "{account}");
    relay.expect_no_surprises(&[]);
}

/// An intent whose time is past leaves at once; one that never comes, or that no calendar of the relay has, is refused.
#[tokio::test]
async fn a_time_in_the_past_is_now_and_an_infinite_one_is_refused() {
    let database = Database::create().await;
    let place = Place::install(&database.url(), &shared::kafka(), "past").await;
    let mut connection = database.connect().await;
    emit_later(&mut connection, &place.topic, "a", -86_400.0).await;
    for never in ["infinity", "-infinity", "9999-12-31 23:59:59-05", "20000-01-01", "0001-01-01 BC"] {
        let refused = sqlx::query(
            "insert into outbox.message (topic, key, payload, deliver_after) values ($1, 'a', 'x', $2::text::timestamptz)",
        )
        .bind(&place.topic)
        .bind(never)
        .execute(&mut connection)
        .await
        .unwrap_err();
        assert!(
            refused.to_string().contains("deliver_after is infinite, or in no year"),
            "{never}: {refused}"
        );
    }
    // The last that is taken.
    sqlx::query(
        "insert into outbox.message (topic, key, payload, deliver_after) values ($1, 'a', 'x', '9999-12-29')",
    )
    .bind(&place.topic)
    .execute(&mut connection)
    .await
    .unwrap();
    let mut relay = place.setup.start().await;
    let metrics =
        relay.wait_until("it is out", SOON, |m| m.sum("outboxd_dispatched_total", &[]) >= 1.0).await;
    assert_eq!(metrics.sum("outboxd_released_total", &[]), 1.0);
    checker::dealt_with(&place.url, SOON).await;
    relay.expect_no_surprises(&[]);
}
