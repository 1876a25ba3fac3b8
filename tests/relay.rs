//! The path from an intent to a record, through the real relay: what arrives, what waits, and how the process ends.

use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use outboxd_core::receipts;
use outboxd_testkit::checker;
use outboxd_testkit::kafka::{self, Broker, Consumed};
use outboxd_testkit::postgres::{Database, Mode, Server};
use outboxd_testkit::relay::eventually;
use outboxd_testkit::shared;
use outboxd_testkit::workload::{Workload, scale};
use sqlx::{Connection, PgConnection};
use tokio::time::Instant;
use uuid::Uuid;

use crate::outage::OUTAGE_LINES;
use crate::support::{Place, SOON, emit_on};

/// Longer than any drain of a healthy relay, shorter than its grace period.
const DRAIN: Duration = Duration::from_secs(20);

async fn place(purpose: &str) -> (Database, Place) {
    let database = Database::create().await;
    let place = Place::install(&database.url(), &shared::kafka(), purpose).await;
    (database, place)
}

/// The one record of a message.
async fn record_of(place: &Place, id: Uuid) -> Consumed {
    let mut records = kafka::read_all(&place.bootstrap, &place.topic).await;
    records.retain(|record| record.id() == id);
    assert_eq!(records.len(), 1, "message {id} is there once");
    records.remove(0)
}

async fn insert(connection: &mut PgConnection, columns: &'static str, topic: &str) -> Uuid {
    sqlx::query_scalar(columns).bind(topic).fetch_one(connection).await.unwrap()
}

/// D1, D2. Also what the wire looks like: names, order and bytes of the headers.
#[tokio::test]
async fn a_committed_intent_becomes_a_record_with_its_bytes_its_headers_and_a_receipt() {
    let (database, place) = place("thin").await;
    let mut connection = database.connect().await;
    let mut relay = place.setup.start().await;

    let mut transaction = connection.begin().await.unwrap();
    sqlx::query("select set_config('outbox.correlation_id', 'order-17', true)")
        .execute(&mut *transaction)
        .await
        .unwrap();
    let id = insert(
        &mut transaction,
        r#"insert into outbox.message (topic, key, payload, headers, content_type, causation_id, traceparent, tracestate)
           values ($1, 'k', '{"total": 12}', '{"tenant": "42"}', 'application/json', 'cart-3',
                   '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01', 'v=1') returning id"#,
        &place.topic,
    )
    .await;
    let emitted: Uuid =
        sqlx::query_scalar("select outbox.emit(topic => $1, key => 'k', payload => 'text'::text)")
            .bind(&place.topic)
            .fetch_one(&mut *transaction)
            .await
            .unwrap();
    transaction.commit().await.unwrap();
    let mut rolled_back = connection.begin().await.unwrap();
    emit_on(&mut rolled_back, &place.topic, "k", "never").await;
    rolled_back.rollback().await.unwrap();

    checker::dealt_with(&place.url, SOON).await;
    let record = record_of(&place, id).await;
    assert_eq!(record.key.as_deref(), Some(&b"k"[..]));
    assert_eq!(record.payload.as_deref(), Some(&br#"{"total": 12}"#[..]));
    let names: Vec<&str> = record.headers.iter().map(|(name, _)| name.as_str()).collect();
    let expected = [
        "id",
        "correlation-id",
        "causation-id",
        "content-type",
        "traceparent",
        "tracestate",
        "outbox-time",
        "tenant",
    ];
    assert_eq!(names, expected);
    assert_eq!(record.header("correlation-id"), Some("order-17"));
    assert_eq!(record.header("causation-id"), Some("cart-3"));
    assert_eq!(record.header("tenant"), Some("42"));
    let other = record_of(&place, emitted).await;
    assert_eq!(other.header("correlation-id"), Some("order-17"), "it is inherited by every intent");
    assert_eq!(other.payload.as_deref(), Some(&b"text"[..]));

    let (packed, relay_name): (Vec<u8>, Option<String>) =
        sqlx::query_as("select receipts, relay from outbox.receipt order by receipt limit 1")
            .fetch_one(&mut connection)
            .await
            .unwrap();
    let receipt = receipts::decode(&packed).unwrap().remove(0);
    assert_eq!(receipt.topic, place.topic);
    assert_eq!((receipt.receipt.partition, receipt.receipt.offset), (record.partition, record.offset));
    assert!(relay_name.is_some_and(|name| !name.is_empty()));

    place.account().await.assert_all_published(0);
    assert!(relay.terminate(DRAIN).await.success());
    relay.expect_no_surprises(&[]);
}

/// D1. What is unusual is not refused, and its bytes are not touched.
#[tokio::test]
async fn tombstones_null_keys_large_payloads_any_bytes_and_explicit_partitions_arrive_as_written() {
    let (database, place) = place("forms").await;
    let mut connection = database.connect().await;
    let mut relay = place.setup.start().await;
    let tombstone = insert(
        &mut connection,
        "insert into outbox.message (topic, key) values ($1, 'gone') returning id",
        &place.topic,
    )
    .await;
    let keyless = insert(
        &mut connection,
        "insert into outbox.message (topic, payload) values ($1, 'no key') returning id",
        &place.topic,
    )
    .await;
    let large = insert(
        &mut connection,
        "insert into outbox.message (topic, key, payload)
         values ($1, 'large', convert_to(repeat('0123456789', 90000), 'UTF8')) returning id",
        &place.topic,
    )
    .await;
    let bytes = insert(
        &mut connection,
        r"insert into outbox.message (topic, key, payload) values ($1, 'bytes', '\x00ff80c328fe') returning id",
        &place.topic,
    )
    .await;
    let empty = insert(
        &mut connection,
        "insert into outbox.message (topic, key, payload) values ($1, '', '') returning id",
        &place.topic,
    )
    .await;
    let mut placed = Vec::new();
    for statement in [
        "insert into outbox.message (topic, key, payload, partition) values ($1, 'same', 'x', 0) returning id",
        "insert into outbox.message (topic, key, payload, partition) values ($1, 'same', 'x', 1) returning id",
        "insert into outbox.message (topic, key, payload, partition) values ($1, 'same', 'x', 2) returning id",
    ] {
        placed.push(insert(&mut connection, statement, &place.topic).await);
    }
    checker::dealt_with(&place.url, SOON).await;

    let record = record_of(&place, tombstone).await;
    assert_eq!((record.key.as_deref(), record.payload), (Some(&b"gone"[..]), None));
    let record = record_of(&place, keyless).await;
    assert_eq!((record.key, record.payload.as_deref()), (None, Some(&b"no key"[..])));
    let record = record_of(&place, large).await;
    assert_eq!(record.payload.map(|payload| payload.len()), Some(900_000));
    let record = record_of(&place, bytes).await;
    assert_eq!(record.payload.as_deref(), Some(&[0x00, 0xff, 0x80, 0xc3, 0x28, 0xfe][..]));
    let record = record_of(&place, empty).await;
    assert_eq!((record.key.as_deref(), record.payload.as_deref()), (Some(&b""[..]), Some(&b""[..])));
    for (partition, id) in (0..).zip(placed) {
        assert_eq!(record_of(&place, id).await.partition, partition);
    }
    assert!(relay.terminate(DRAIN).await.success());
    relay.expect_no_surprises(&[]);
}

/// D1, D3. What was in flight is awaited and settled, so the next relay repeats nothing.
#[tokio::test]
async fn a_relay_that_is_asked_to_end_under_load_drains_without_a_single_duplicate() {
    let (_database, place) = place("drain").await;
    let mut relay = place.setup.start().await;
    let writing = Workload::new(std::slice::from_ref(&place.topic), 11).start(&place.url).await;
    for target in [200.0, 400.0, 600.0] {
        let dispatched = |m: &outboxd_testkit::relay::Metrics| m.sum("outboxd_dispatched_total", &[]);
        relay.wait_until("it dispatches under load", SOON, |m| dispatched(m) > target / 3.0).await;
        let status = relay.terminate(DRAIN).await;
        assert!(status.success(), "{status}");
        relay.expect_no_surprises(&[]);
        relay = place.setup.start().await;
    }
    writing.stop().await;
    place.account().await.assert_all_published(0);
    relay.expect_no_surprises(&[]);
}

/// D1. The operator's way out when a drain waits for a broker that does not answer; it costs duplicates at most.
#[tokio::test]
async fn a_second_signal_ends_a_drain_at_once_and_loses_nothing() {
    let database = Database::create().await;
    let broker = Broker::start(kafka::Options::default()).await.unwrap();
    let place = Place::install(&database.url(), &broker.bootstrap(), "second-signal").await;
    let mut relay = place.setup.start().await;
    place.emit("a", "1").await;
    checker::dealt_with(&place.url, SOON).await;
    broker.pause().unwrap();
    place.emit("a", "2").await;
    relay
        .wait_until("a record waits for its acknowledgement", SOON, |m| {
            m.sum("outboxd_enqueued_total", &[]) == 2.0
        })
        .await;
    relay.ask_to_drain();
    eventually("it drains", SOON, async || {
        relay.logged().iter().any(|line| line.text.contains("drain")).then_some(())
    })
    .await;
    assert_eq!(relay.exited(), None, "a drain waits for what is in flight");
    relay.ask_to_drain();
    let status = relay.ended(Duration::from_secs(3)).await;
    assert_eq!((status.code(), status.signal()), (Some(128 + 15), None));
    broker.resume().unwrap();
    let mut next = place.setup.start().await;
    next.leads(SOON).await;
    place.account().await.assert_all_published(1);
    next.expect_no_surprises(&[]);
}

/// D1, D4. A sidecar starts in whatever order the platform likes.
#[tokio::test]
async fn a_relay_that_starts_before_its_servers_waits_for_them_and_then_dispatches() {
    let mut server = Server::start(outboxd_testkit::postgres::Options::default()).await.unwrap();
    let mut broker = Broker::start(kafka::Options::default()).await.unwrap();
    let place = Place::install(&server.url("postgres"), &broker.bootstrap(), "all-down").await;
    for n in 0..20 {
        place.emit(&format!("k{}", n % 3), &n.to_string()).await;
    }
    server.stop(Mode::Fast).await.unwrap();
    broker.stop().await.unwrap();

    let mut relay = place.setup.clone().set("relay.outage_after_ms", 2_000).start().await;
    relay
        .wait_until("it says that the database is out", SOON, |m| {
            m.sum("outboxd_outage", &[("side", "database")]) == 1.0
        })
        .await;
    assert_eq!(
        relay.get("/livez").await.map(|(code, _)| code),
        Some(200),
        "an outage is no reason to be restarted"
    );
    server.start_again().await.unwrap();
    relay
        .wait_until("it says that Kafka is out", SOON, |m| {
            m.sum("outboxd_outage", &[("side", "database")]) == 0.0
                && m.sum("outboxd_outage", &[("side", "kafka")]) == 1.0
        })
        .await;
    broker.start_again().await.unwrap();
    let metrics = relay
        .wait_until("everything is dispatched", SOON, |m| m.sum("outboxd_dispatched_total", &[]) == 20.0)
        .await;
    assert_eq!(metrics.sum("outboxd_outage", &[]), 0.0);
    assert_eq!(metrics.sum("outboxd_held_total", &[]) + metrics.sum("outboxd_parked_total", &[]), 0.0);
    place.account().await.assert_all_published(0);
    relay.expect_no_surprises(&OUTAGE_LINES);
}

/// D1, D3. There is no wait for the oldest transaction: what is open delays its own intents and nothing else.
#[tokio::test]
async fn a_transaction_left_open_for_a_minute_delays_only_its_own_intents() {
    const OPEN_FOR: Duration = Duration::from_secs(60);
    let (database, place) = place("left-open").await;
    let mut relay = place.setup.start().await;
    let mut holder = database.connect().await;
    let mut left_open = holder.begin().await.unwrap();
    emit_on(&mut left_open, &place.topic, "slow", "late").await;
    let mut connection = database.connect().await;
    let opened_at = Instant::now();
    let mut others = 0_u32;
    while opened_at.elapsed() < OPEN_FOR {
        for key in ["a", "b", "c"] {
            emit_on(&mut connection, &place.topic, key, &others.to_string()).await;
            others += 1;
        }
        let all = f64::from(others);
        relay
            .wait_until("the others flow", Duration::from_secs(20), |m| {
                m.sum("outboxd_dispatched_total", &[]) == all
            })
            .await;
    }
    assert!(others > 30, "{others} intents passed the open transaction");
    let metrics = relay.metrics().await.unwrap();
    assert_eq!(metrics.sum("outboxd_late_messages_total", &[]), 0.0);
    left_open.commit().await.unwrap();
    let all = f64::from(others + 1);
    relay
        .wait_until("the late one follows", Duration::from_secs(20), |m| {
            m.sum("outboxd_dispatched_total", &[]) == all && m.sum("outboxd_late_messages_total", &[]) == 1.0
        })
        .await;
    place.account().await.assert_all_published(0);
    relay.expect_no_surprises(&[]);
}

/// D1, D3. Late messages are read in pages under a fixed snapshot, so one transaction of any size costs no more memory than
/// its pages, and no transaction of the relay stays open meanwhile.
///
/// `OUTBOXD_TEST_BULK_ROWS=2000000` makes it as large as the contract says.
#[tokio::test]
async fn one_huge_transaction_that_others_overtook_is_relayed_in_pages_within_bounded_memory() {
    const GROWTH_MAX: u64 = 96 << 20;
    let rows = scale("OUTBOXD_TEST_BULK_ROWS", 200_000);
    let (database, place) = place("huge").await;
    let mut relay = place.setup.start().await;
    place.emit("first", "1").await;
    checker::dealt_with(&place.url, SOON).await;
    let (_, before) = relay.resident_bytes();

    let mut bulk = database.connect().await;
    let mut huge = bulk.begin().await.unwrap();
    sqlx::query(
        "insert into outbox.message (topic, key, payload)
         select $1, 'bulk-' || g % 50, convert_to(rpad(json_build_object('n', g)::text, 1000), 'UTF8')
         from generate_series(1, $2) g",
    )
    .bind(&place.topic)
    .bind(i64::from(rows))
    .execute(&mut *huge)
    .await
    .unwrap();
    for n in 0..500 {
        place.emit(&format!("k{}", n % 10), &n.to_string()).await;
    }
    relay
        .wait_until("the others overtake it", SOON, |m| m.sum("outboxd_dispatched_total", &[]) == 501.0)
        .await;
    huge.commit().await.unwrap();

    let (mut catch_ups, mut longest_s) = (0, 0.0_f64);
    let mut watcher = database.connect().await;
    let all = f64::from(501 + rows);
    let deadline = Instant::now() + SOON + Duration::from_millis(rows.into());
    loop {
        let (in_catch_up, open_s): (bool, f64) = sqlx::query_as(
            "select pos is not null,
                    coalesce((select extract(epoch from max(clock_timestamp() - xact_start))::float8
                              from pg_stat_activity
                              where datname = current_database() and application_name like 'outboxd%'), 0)
             from outbox.cursor",
        )
        .fetch_one(&mut watcher)
        .await
        .unwrap();
        catch_ups += u32::from(in_catch_up);
        longest_s = longest_s.max(open_s);
        let metrics = relay.metrics().await.unwrap();
        if metrics.sum("outboxd_dispatched_total", &[]) >= all {
            break;
        }
        assert!(Instant::now() < deadline, "{metrics}");
    }
    let (now, most) = relay.resident_bytes();
    eprintln!(
        "{rows} rows: resident {before} before, {now} after, {most} at most; longest transaction {longest_s:.2} s"
    );
    assert!(catch_ups > 0, "the cursor was seen in a catch-up");
    assert!(longest_s < 10.0, "a transaction of the relay was open for {longest_s} s");
    assert!(most - before < GROWTH_MAX, "it grew from {before} to {most} bytes");
    place.account().await.assert_all_published(0);
    relay.expect_no_surprises(&[]);
}

/// D1. Purge takes what is dispatched and old, and never what is held, or read and not acknowledged, however old.
#[tokio::test]
async fn purge_deletes_what_is_dispatched_and_nothing_that_is_held_or_undelivered() {
    const PURGES: Duration = Duration::from_secs(2);
    let database = Database::create().await;
    let broker = Broker::start(kafka::Options::default()).await.unwrap();
    let place = Place::install(&database.url(), &broker.bootstrap(), "purge").await;
    let missing = kafka::unique_topic("missing");
    let mut connection = database.connect().await;
    for n in 0..200 {
        let topic = if n % 20 == 0 { &missing } else { &place.topic };
        emit_old(&mut connection, topic, n).await;
    }
    let setup = place.setup.clone().set("purge.every_ms", 50).set("purge.rows", 10);
    let setup = setup.set("purge.keep_messages_days", 1).set("purge.keep_receipts_days", 0);
    let mut relay = setup.start().await;
    relay
        .wait_until("all that is dispatched is deleted", SOON, |m| {
            m.sum("outboxd_purged_rows_total", &[("rows", "messages")]) == 190.0
                && m.sum("outboxd_purged_rows_total", &[("rows", "receipts")]) > 0.0
        })
        .await;
    let left: Vec<(String, bool)> = sqlx::query_as(
        "select m.topic, h.seq is not null from outbox.message m left join outbox.held h using (seq)",
    )
    .fetch_all(&mut connection)
    .await
    .unwrap();
    assert_eq!(left, vec![(missing.clone(), true); 10]);

    broker.pause().unwrap();
    for n in 200..230 {
        emit_old(&mut connection, &place.topic, n).await;
    }
    relay
        .wait_until("they are with the client", SOON, |m| m.sum("outboxd_enqueued_total", &[]) == 220.0)
        .await;
    let enqueued_at = Instant::now();
    let metrics =
        relay.wait_until("purge has looked at them", SOON, |_| enqueued_at.elapsed() > PURGES).await;
    assert_eq!(metrics.sum("outboxd_purged_rows_total", &[("rows", "messages")]), 190.0);
    broker.resume().unwrap();
    kafka::create_topic(&place.bootstrap, &missing, 1, &[]).await;
    relay
        .wait_until("the rest is dispatched and deleted too", SOON, |m| {
            m.sum("outboxd_purged_rows_total", &[("rows", "messages")]) == 230.0
        })
        .await;
    assert_eq!(kafka::read_all(&place.bootstrap, &place.topic).await.len(), 220);
    assert_eq!(kafka::read_all(&place.bootstrap, &missing).await.len(), 10);
    relay.expect_no_surprises(&["topic cannot be written to"]);
}

/// An intent that is old from the start: only being dispatched may decide.
async fn emit_old(connection: &mut PgConnection, topic: &str, n: u32) {
    sqlx::query(
        "insert into outbox.message (topic, key, payload, created_at)
         values ($1, 'k' || $2 % 7, convert_to($2::text, 'UTF8'), now() - interval '1 year')",
    )
    .bind(topic)
    .bind(i64::from(n))
    .execute(connection)
    .await
    .unwrap();
}

/// A relay with nothing to do is no reason for the database to write, archive or replicate anything.
#[tokio::test]
async fn an_idle_relay_writes_nothing_to_the_database() {
    let quiet = outboxd_testkit::postgres::Options::default()
        .setting("autovacuum", "off")
        .setting("checkpoint_timeout", "1h")
        // Above it the server notes by itself which transactions run, every 15 seconds.
        .setting("wal_level", "minimal")
        .setting("max_wal_senders", "0");
    let server = Server::start(quiet).await.unwrap();
    let place = Place::install(&server.url("postgres"), &shared::kafka(), "idle").await;
    let mut connection = PgConnection::connect(&place.url).await.unwrap();
    let mut relay = place.setup.start().await;
    place.emit("a", "1").await;
    relay.wait_until("it is dispatched", SOON, |m| m.sum("outboxd_dispatched_total", &[]) == 1.0).await;
    checker::dealt_with(&place.url, SOON).await;

    let mut positions = Vec::new();
    for _ in 0..6 {
        let position: String = sqlx::query_scalar("select pg_current_wal_insert_lsn()::text")
            .fetch_one(&mut connection)
            .await
            .unwrap();
        positions.push(position);
        let looks = relay.metrics().await.unwrap().sum("outboxd_pages_empty_total", &[]);
        relay
            .wait_until("it has looked again and again", SOON, |m| {
                m.sum("outboxd_pages_empty_total", &[]) > looks + 100.0
            })
            .await;
    }
    // The first interval may still hold what the dispatch left behind.
    assert_eq!(positions[1], positions[5], "{positions:?}");
    relay.expect_no_surprises(&[]);
}
