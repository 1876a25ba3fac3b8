//! What the indexes of `outboxd trace` cost the application: single-row commits and bulk inserts into the outbox table with none, each
//! and all of them, in turn, over a table that holds rows already.
//!
//! ```text
//! cargo bench --bench writer     # OUTBOXD_BENCH_ROWS=1000000 OUTBOXD_BENCH_ROUNDS=5 OUTBOXD_BENCH_COMMITS=4000 OUTBOXD_BENCH_BULK=200000
//! ```
//!
//! Quote the ratios, which compare neighbours in time, and the bytes, which no noise touches; not the absolute figures.
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on ends there")]

use std::time::Instant;

use outboxd_postgres::SchemaName;
use outboxd_postgres::migrate::{IndexStep, Migrator, TraceIndexes};
use outboxd_testkit::postgres;
use sqlx::{Connection, PgConnection};

const CLIENTS: i64 = 8;

/// An intent as an application with tracing writes it: every indexed column is set.
const INTENT: &str = "insert into outbox.message (topic, key, payload, causation_id, traceparent)
  select 'orders', 'account-' || (random() * 10000)::int, convert_to(repeat('x', 512), 'UTF8'), gen_random_uuid()::text,
    '00-' || md5(random()::text) || '-00f067aa0ba902b7-01'
  from generate_series(1, $1::bigint)";

/// One turn with one set of indexes.
struct Turn {
    commits_per_s: f64,
    bulk_rows_per_s: f64,
    wal_bytes_per_row: f64,
    index_bytes_per_row: f64,
}

#[tokio::main]
async fn main() {
    let rows = setting("OUTBOXD_BENCH_ROWS", 1_000_000);
    let rounds = setting("OUTBOXD_BENCH_ROUNDS", 5);
    let commits = setting("OUTBOXD_BENCH_COMMITS", 4_000);
    let bulk = setting("OUTBOXD_BENCH_BULK", 200_000);
    let options = postgres::Options::default().setting("max_wal_size", "8GB").setting("autovacuum", "off");
    let server = postgres::Server::start(options).await.unwrap();
    let url = server.url("postgres");
    let migrator = Migrator::new(url.parse().unwrap(), SchemaName::default());
    migrator.apply().await.unwrap();
    let mut database = PgConnection::connect(&url).await.unwrap();
    sqlx::query(INTENT).bind(rows).execute(&mut database).await.unwrap();
    let steps = migrator.plan_trace_indexes(TraceIndexes::Wanted).await.unwrap();
    let mut sets: Vec<(&str, &[IndexStep])> = vec![("none", &[])];
    sets.extend(steps.iter().map(|step| (step.index, std::slice::from_ref(step))));
    sets.push(("all five", &steps));

    let mut turns: Vec<Vec<Turn>> = sets.iter().map(|_| Vec::new()).collect();
    for _ in 0..rounds {
        for ((_, indexes), turns) in sets.iter().zip(&mut turns) {
            turns.push(turn(&mut database, &url, indexes, commits, bulk).await);
            migrator.change_trace_indexes(TraceIndexes::Unwanted, |_, _| ()).await.unwrap();
        }
    }
    println!(
        "{rounds} rounds over {rows} rows: {commits} commits by {CLIENTS} clients, then {bulk} rows in one statement; medians"
    );
    println!("| Indexes | Commits/s | ratio | Bulk rows/s | ratio | WAL bytes a row | Index bytes a row |");
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    for ((name, _), of_set) in sets.iter().zip(&turns) {
        let of = |figure: fn(&Turn) -> f64| median(of_set.iter().map(figure));
        let ratio = |figure: fn(&Turn) -> f64| {
            median(of_set.iter().zip(&turns[0]).map(|(with, without)| figure(with) / figure(without)))
        };
        println!(
            "| {name} | {:.0} | {:.2} | {:.0} | {:.2} | {:.0} | {:.0} |",
            of(|turn| turn.commits_per_s),
            ratio(|turn| turn.commits_per_s),
            of(|turn| turn.bulk_rows_per_s),
            ratio(|turn| turn.bulk_rows_per_s),
            of(|turn| turn.wal_bytes_per_row),
            of(|turn| turn.index_bytes_per_row),
        );
    }
}

#[expect(clippy::disallowed_methods, reason = "a benchmark's own settings")]
fn setting(name: &str, default: i64) -> i64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// Builds these indexes and writes.
#[expect(clippy::cast_precision_loss, reason = "figures for a table")]
async fn turn(
    database: &mut PgConnection,
    url: &str,
    indexes: &[IndexStep],
    commits: i64,
    bulk: i64,
) -> Turn {
    for sql in indexes.iter().flat_map(|step| &step.sql) {
        sqlx::raw_sql(sql.clone()).execute(&mut *database).await.unwrap();
    }
    sqlx::raw_sql("checkpoint").execute(&mut *database).await.unwrap();
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(PgConnection::connect(url).await.unwrap());
    }
    let began = Instant::now();
    let mut writing = tokio::task::JoinSet::new();
    for mut client in clients {
        writing.spawn(async move {
            for _ in 0..commits / CLIENTS {
                sqlx::query(INTENT).bind(1_i64).execute(&mut client).await.unwrap();
            }
        });
    }
    writing.join_all().await;
    let commits_per_s = (commits / CLIENTS * CLIENTS) as f64 / began.elapsed().as_secs_f64();

    let wal_before = wal_bytes(database).await;
    let began = Instant::now();
    sqlx::query(INTENT).bind(bulk).execute(&mut *database).await.unwrap();
    let bulk_rows_per_s = bulk as f64 / began.elapsed().as_secs_f64();
    let wal_bytes_per_row = (wal_bytes(database).await - wal_before) as f64 / bulk as f64;
    let rows = number(database, "select count(*) from outbox.message").await;
    let names: Vec<&str> = indexes.iter().map(|step| step.index).collect();
    let index_bytes: i64 = sqlx::query_scalar(
        "select coalesce(sum(pg_relation_size(x.oid)), 0)::bigint from pg_class x
         where x.relnamespace = 'outbox'::regnamespace and x.relname = any($1)",
    )
    .bind(names)
    .fetch_one(&mut *database)
    .await
    .unwrap();
    Turn {
        commits_per_s,
        bulk_rows_per_s,
        wal_bytes_per_row,
        index_bytes_per_row: index_bytes as f64 / rows as f64,
    }
}

async fn wal_bytes(database: &mut PgConnection) -> i64 {
    number(database, "select (pg_current_wal_insert_lsn() - '0/0')::bigint").await
}

async fn number(database: &mut PgConnection, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(database).await.unwrap()
}

fn median(figures: impl Iterator<Item = f64>) -> f64 {
    let mut figures: Vec<f64> = figures.collect();
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}
