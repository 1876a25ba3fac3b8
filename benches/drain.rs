//! Drains a backlog of 512-byte intents: the relay, and beside it in the same run the loop that everybody writes
//! (`FOR UPDATE SKIP LOCKED`, publish, wait, `UPDATE`), on the same PostgreSQL and the same broker, in turn A B A B.
//!
//! ```text
//! cargo bench --bench drain            # OUTBOXD_BENCH_ROWS=500000 OUTBOXD_BENCH_ROUNDS=3
//! ```
//!
//! Quote the ratio, not the absolute figures: machines are noisy.
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on ends there")]

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use outboxd_testkit::{kafka, postgres};
use rdkafka::ClientConfig;
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer};
use sqlx::{Connection, PgConnection, Row};

const PAYLOAD_BYTES: i32 = 512;
const KEYS: i64 = 10_000;
const BATCH_SIZES: [i64; 3] = [1_000, 5_000, 20_000];
const DRAIN_LIMIT: Duration = Duration::from_secs(300);

/// One drain.
struct Figure {
    what: String,
    rows_per_s: f64,
    cpu_s_per_million: f64,
    rss_mib: f64,
}

#[tokio::main]
async fn main() {
    let rows = setting("OUTBOXD_BENCH_ROWS", 500_000);
    let rounds = setting("OUTBOXD_BENCH_ROUNDS", 3);
    let server =
        postgres::Server::start(postgres::Options::default().setting("max_wal_size", "8GB")).await.unwrap();
    let broker = kafka::Broker::start(kafka::Options::default()).await.unwrap();
    let url = server.url("postgres");
    let mut database = PgConnection::connect(&url).await.unwrap();
    prepare(&mut database, &url).await;
    let mut figures = Vec::new();
    for round in 0..rounds {
        let topic = format!("drain-{round}");
        kafka::create_topic(&broker.bootstrap(), &topic, 12, &[]).await;
        figures.push(relay(&mut database, &url, &broker.bootstrap(), &topic, rows).await);
        let batch = BATCH_SIZES[usize::try_from(round).unwrap() % BATCH_SIZES.len()];
        figures.push(baseline(&mut database, &broker.bootstrap(), &topic, rows, batch).await);
    }
    println!("{rows} rows of {PAYLOAD_BYTES} bytes, {KEYS} keys, 12 partitions");
    println!("{:<34} {:>10} {:>16} {:>9}", "what", "rows/s", "CPU-s/million", "RSS MiB");
    for figure in &figures {
        println!(
            "{:<34} {:>10.0} {:>16.2} {:>9.0}",
            figure.what, figure.rows_per_s, figure.cpu_s_per_million, figure.rss_mib
        );
    }
    for pair in figures.chunks(2) {
        println!("relay / {}: {:.2}", pair[1].what, pair[0].rows_per_s / pair[1].rows_per_s);
    }
}

#[expect(clippy::disallowed_methods, reason = "a benchmark's own settings")]
fn setting(name: &str, default: i64) -> i64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

async fn prepare(database: &mut PgConnection, url: &str) {
    let migrated = Command::new(env!("CARGO_BIN_EXE_outboxd"))
        .arg("migrate")
        .env("OUTBOXD__DATABASE__URL", url)
        .env("OUTBOXD__KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:1")
        .status()
        .unwrap();
    assert!(migrated.success());
    sqlx::raw_sql(
        "create table baseline (id bigserial primary key, topic text not null, key text, payload bytea, sent_at timestamptz);
         create index on baseline (id) where sent_at is null;",
    )
    .execute(database)
    .await
    .unwrap();
}

async fn relay(database: &mut PgConnection, url: &str, bootstrap: &str, topic: &str, rows: i64) -> Figure {
    fill(database, "outbox.message", topic, rows).await;
    let began = Instant::now();
    let mut child = Child::new_relay(url, bootstrap);
    let mut rss_mib = 0.0_f64;
    loop {
        let settled: Option<i64> = sqlx::query_scalar(
            "select (select max(seq) from outbox.message) - (select high from outbox.cursor)",
        )
        .fetch_one(&mut *database)
        .await
        .unwrap();
        rss_mib = rss_mib.max(memory_mib(child.id()));
        if settled == Some(0) {
            break;
        }
        assert!(began.elapsed() < DRAIN_LIMIT, "{settled:?} rows are left");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let took = began.elapsed();
    let cpu_s = cpu_s(child.id());
    child.kill().unwrap();
    child.wait().unwrap();
    sqlx::query("truncate outbox.message, outbox.receipt").execute(database).await.unwrap();
    figure("outboxd (start included)".into(), rows, took, cpu_s, rss_mib)
}

trait NewRelay {
    fn new_relay(url: &str, bootstrap: &str) -> Child;
}

impl NewRelay for Child {
    fn new_relay(url: &str, bootstrap: &str) -> Child {
        Command::new(env!("CARGO_BIN_EXE_outboxd"))
            .arg("run")
            .env("OUTBOXD__DATABASE__URL", url)
            .env("OUTBOXD__KAFKA__BOOTSTRAP_SERVERS", bootstrap)
            .env("OUTBOXD__HTTP__LISTEN", "127.0.0.1:0")
            .env("OUTBOXD__ADMIN__LISTEN", "off")
            .env("OUTBOXD_LOG", "warn")
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    }
}

/// Counts acknowledgements.
struct Acknowledged(Arc<AtomicUsize>);

impl rdkafka::ClientContext for Acknowledged {}

impl ProducerContext for Acknowledged {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        result.as_ref().unwrap();
        self.0.fetch_add(1, Ordering::Release);
    }
}

async fn baseline(
    database: &mut PgConnection,
    bootstrap: &str,
    topic: &str,
    rows: i64,
    batch: i64,
) -> Figure {
    fill(database, "baseline", topic, rows).await;
    let acknowledged = Arc::new(AtomicUsize::new(0));
    let began = Instant::now();
    let cpu_before = cpu_s(std::process::id());
    let producer: ThreadedProducer<Acknowledged> = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("enable.idempotence", "true")
        .set("linger.ms", "1")
        .set("queue.buffering.max.messages", "200000")
        .create_with_context(Acknowledged(Arc::clone(&acknowledged)))
        .unwrap();
    let mut published = 0;
    loop {
        let mut transaction = database.begin().await.unwrap();
        let page = sqlx::query(
            "select id, topic, key, payload from baseline where sent_at is null order by id limit $1 for update skip locked",
        )
        .bind(batch)
        .fetch_all(&mut *transaction)
        .await
        .unwrap();
        if page.is_empty() {
            break;
        }
        let mut ids: Vec<i64> = Vec::with_capacity(page.len());
        for row in &page {
            ids.push(row.get(0));
            let record = BaseRecord::to(row.get::<&str, _>(1))
                .key(row.get::<&str, _>(2))
                .payload(row.get::<&[u8], _>(3));
            producer.send(record).map_err(|(error, _)| error).unwrap();
        }
        published += page.len();
        while acknowledged.load(Ordering::Acquire) < published {
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
        sqlx::query("update baseline set sent_at = now() where id = any($1)")
            .bind(&ids)
            .execute(&mut *transaction)
            .await
            .unwrap();
        transaction.commit().await.unwrap();
    }
    let took = began.elapsed();
    let cpu_s = cpu_s(std::process::id()) - cpu_before;
    producer.flush(Duration::from_secs(10)).unwrap();
    sqlx::query("truncate baseline").execute(database).await.unwrap();
    figure(format!("skip locked + update, n = {batch}"), rows, took, cpu_s, memory_mib(std::process::id()))
}

async fn fill(database: &mut PgConnection, table: &str, topic: &str, rows: i64) {
    let sql = format!(
        "insert into {table} (topic, key, payload)
         select $1, 'key-' || n % $2, convert_to(repeat('x', $3), 'UTF8') from generate_series(1, $4::bigint) n"
    );
    sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(topic)
        .bind(KEYS)
        .bind(PAYLOAD_BYTES)
        .bind(rows)
        .execute(&mut *database)
        .await
        .unwrap();
    let vacuum = format!("vacuum (analyze) {table}");
    sqlx::raw_sql(sqlx::AssertSqlSafe(vacuum)).execute(&mut *database).await.unwrap();
    sqlx::query("checkpoint").execute(database).await.unwrap();
}

#[expect(clippy::cast_precision_loss, reason = "figures for a table")]
fn figure(what: String, rows: i64, took: Duration, cpu_s: f64, rss_mib: f64) -> Figure {
    let rows = rows as f64;
    Figure { what, rows_per_s: rows / took.as_secs_f64(), cpu_s_per_million: cpu_s / rows * 1e6, rss_mib }
}

/// User and system time of a process in seconds, from `/proc` (100 ticks a second).
fn cpu_s(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let ticks = |nth: usize| after_name.split_whitespace().nth(nth).and_then(|text| text.parse::<f64>().ok());
    (ticks(11).unwrap_or(0.0) + ticks(12).unwrap_or(0.0)) / 100.0
}

fn memory_mib(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap_or_default();
    let kib = line.split_whitespace().nth(1).and_then(|text| text.parse::<f64>().ok());
    kib.unwrap_or(0.0) / 1024.0
}
