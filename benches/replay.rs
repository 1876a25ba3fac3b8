//! What a replay costs the live messages: the same load without one and beside one, in turn A B A B.
//!
//! ```text
//! cargo bench --bench replay           # OUTBOXD_BENCH_ROWS=100000 OUTBOXD_BENCH_ROUNDS=3
//! ```
//!
//! Two loads: a backlog that is drained as fast as it goes, and a steady trickle whose time from insert to acknowledgement is
//! measured. Quote the ratios, not the absolute figures: machines are noisy.
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on ends there")]

use std::time::{Duration, Instant};

use outboxd_testkit::relay::{Metrics, Relay, Setup};
use outboxd_testkit::{kafka, postgres};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

const SOON: Duration = Duration::from_secs(300);
const TRICKLE: u32 = 2_000;
const TRICKLE_EVERY: Duration = Duration::from_millis(4);
const BUCKETS: [&str; 12] =
    ["0.001", "0.0025", "0.005", "0.01", "0.025", "0.05", "0.1", "0.25", "0.5", "1", "2.5", "5"];

/// One round.
struct Figure {
    beside: bool,
    drained_per_s: f64,
    replayed_per_s: f64,
    /// Upper bounds of the buckets with the median and the 99th percentile.
    trickle: (String, String),
    trickle_mean_ms: f64,
}

#[tokio::main]
async fn main() {
    let rows = setting("OUTBOXD_BENCH_ROWS", 100_000);
    let rounds = setting("OUTBOXD_BENCH_ROUNDS", 3);
    let server =
        postgres::Server::start(postgres::Options::default().setting("max_wal_size", "8GB")).await.unwrap();
    let broker = kafka::Broker::start(kafka::Options::default()).await.unwrap();
    kafka::create_topic(&broker.bootstrap(), "live", 12, &[]).await;
    kafka::create_topic(&broker.bootstrap(), "history", 12, &[]).await;
    let url = server.url("postgres");
    let setup = Setup::new(env!("CARGO_BIN_EXE_outboxd"), &url, &broker.bootstrap());
    setup.run_ok(&["migrate"]).await;
    let mut database = PgConnection::connect(&url).await.unwrap();
    let mut relay = setup.start().await;
    insert(&mut database, "history", rows * 3).await;
    relay.wait_until("the history", SOON, |m| dispatched(m) >= count(rows * 3)).await;
    let mut figures = Vec::new();
    for _ in 0..rounds {
        for beside in [false, true] {
            figures.push(round(&setup, &mut relay, &mut database, rows, beside).await);
        }
    }
    println!("{rows} rows of 512 bytes drained, then {TRICKLE} one by one every {TRICKLE_EVERY:?}");
    println!(
        "{:<16} {:>12} {:>12} {:>22} {:>9}",
        "", "drained/s", "replayed/s", "p50, p99 at most s", "mean ms"
    );
    for figure in &figures {
        println!(
            "{:<16} {:>12.0} {:>12.0} {:>22} {:>9.1}",
            if figure.beside { "beside a replay" } else { "alone" },
            figure.drained_per_s,
            figure.replayed_per_s,
            format!("{}, {}", figure.trickle.0, figure.trickle.1),
            figure.trickle_mean_ms
        );
    }
    for pair in figures.chunks(2) {
        println!(
            "beside / alone: drained {:.2}, mean time {:.2}",
            pair[1].drained_per_s / pair[0].drained_per_s,
            pair[1].trickle_mean_ms / pair[0].trickle_mean_ms
        );
    }
}

async fn round(
    setup: &Setup,
    relay: &mut Relay,
    database: &mut PgConnection,
    rows: u32,
    beside: bool,
) -> Figure {
    let replay = if beside {
        let asked = ["replay", "start", "--topic", "history", "--yes", "--reason", "bench", "-o", "json"];
        let replay = setup.run_json(&asked).await["replay"].as_i64().unwrap();
        let begun = relay.metrics().await.unwrap().sum("outboxd_replayed_total", &[]);
        relay.wait_until("it runs", SOON, |m| m.sum("outboxd_replayed_total", &[]) > begun).await;
        Some(replay.to_string())
    } else {
        None
    };
    let before = relay.metrics().await.unwrap();
    let began = Instant::now();
    insert(database, "live", rows).await;
    let after =
        relay.wait_until("drained", SOON, |m| dispatched(m) >= dispatched(&before) + count(rows)).await;
    let took = began.elapsed().as_secs_f64();
    let replayed = after.sum("outboxd_replayed_total", &[]) - before.sum("outboxd_replayed_total", &[]);

    let mut ticks = tokio::time::interval(TRICKLE_EVERY);
    for _ in 0..TRICKLE {
        ticks.tick().await;
        insert(database, "live", 1).await;
    }
    let wanted = dispatched(&after) + count(TRICKLE);
    let last = relay.wait_until("the trickle", SOON, |m| dispatched(m) >= wanted).await;
    if let Some(replay) = replay {
        let shown = setup.run_json(&["replay", "show", &replay, "-o", "json"]).await;
        if shown["state"] != "running" {
            println!("the replay ended before its round did: raise OUTBOXD_BENCH_ROWS");
        }
        let cancel = ["replay", "cancel", &replay, "--reason", "the round is over"];
        setup.run(&cancel).await;
    }
    let grown = |name: &str, labels: &[(&str, &str)]| last.sum(name, labels) - after.sum(name, labels);
    let quantile = |part: f64| {
        let enough = |bound: &&&str| {
            grown("outboxd_emit_to_acknowledged_seconds_bucket", &[("le", bound)]) >= part * count(TRICKLE)
        };
        BUCKETS.iter().find(enough).map_or_else(|| "more".to_owned(), |bound| (*bound).to_owned())
    };
    Figure {
        beside,
        drained_per_s: count(rows) / took,
        replayed_per_s: replayed / took,
        trickle: (quantile(0.5), quantile(0.99)),
        trickle_mean_ms: grown("outboxd_emit_to_acknowledged_seconds_sum", &[]) * 1_000.0 / count(TRICKLE),
    }
}

async fn insert(database: &mut PgConnection, topic: &str, rows: u32) {
    let sql = format!(
        "insert into outbox.message (topic, key, payload)
         select '{topic}', 'key-' || n % 10000, convert_to(repeat('x', 512), 'UTF8') from generate_series(1, {rows}) n"
    );
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(database).await.unwrap();
}

fn dispatched(metrics: &Metrics) -> f64 {
    metrics.sum("outboxd_dispatched_total", &[])
}

fn count(rows: u32) -> f64 {
    f64::from(rows)
}

#[expect(clippy::disallowed_methods, reason = "a benchmark's own settings")]
fn setting(name: &str, default: u32) -> u32 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}
