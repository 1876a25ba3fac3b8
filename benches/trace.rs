//! Trace over millions of retained intents with their receipts: how long an answer takes, as the command (a process that starts, connects,
//! asks and prints) and as a request to a relay that runs, for each kind of id.
//!
//! ```text
//! cargo bench --bench trace      # OUTBOXD_BENCH_ROWS=5000000 OUTBOXD_BENCH_TIMES=21
//! ```
//!
//! The intents come in requests of two: the second is caused by the first. Half of them carry a traceparent, one in a hundred thousand an
//! idempotency key. Each receipt row holds a page of 2000.
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on ends there")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use outboxd_core::receipts::encode;
use outboxd_core::{Receipt, ReceiptEntry, Seq};
use outboxd_postgres::SchemaName;
use outboxd_postgres::migrate::{Migrator, TraceIndexes};
use outboxd_testkit::{kafka, postgres};
use sqlx::{Connection, PgConnection, Row};

const PAGE: i64 = 2_000;

/// Rows of one transaction.
const TRANSACTION: i64 = 100_000;

/// A kind of id: what it is called, the flag of the command, the value.
type Asked = (&'static str, Option<&'static str>, String);

#[tokio::main]
async fn main() {
    let rows = setting("OUTBOXD_BENCH_ROWS", 5_000_000);
    let times = setting("OUTBOXD_BENCH_TIMES", 21);
    let options =
        postgres::Options::default().setting("max_wal_size", "8GB").setting("shared_buffers", "512MB");
    let server = postgres::Server::start(options).await.unwrap();
    let broker = kafka::Broker::start(kafka::Options::default()).await.unwrap();
    let url = server.url("postgres");
    let migrator = Migrator::new(url.parse().unwrap(), SchemaName::default());
    migrator.apply().await.unwrap();
    let mut database = PgConnection::connect(&url).await.unwrap();
    let began = Instant::now();
    fill(&mut database, rows).await;
    println!("{rows} intents and their receipts were written in {:.0} s", began.elapsed().as_secs_f64());
    let began = Instant::now();
    migrator.change_trace_indexes(TraceIndexes::Wanted, |_, _| ()).await.unwrap();
    println!("the five indexes were built in {:.0} s", began.elapsed().as_secs_f64());

    kafka::create_topic(&broker.bootstrap(), "orders", 12, &[]).await;
    let mut relay = Started::relay(&url, &broker.bootstrap());
    let asked = ids(&mut database, rows).await;
    println!("| Asked | messages | command, ms | max | over HTTP, ms | max |");
    println!("| --- | --- | --- | --- | --- | --- |");
    for asked in &asked {
        let (mut as_command, mut over_http) = (Vec::new(), Vec::new());
        let mut messages = 0;
        for _ in 0..times {
            let (took, _) = timed(|| command(&url, asked));
            as_command.push(took);
            let (took, answer) = timed(|| relay.ask(asked));
            over_http.push(took);
            messages = answer["messages"].as_array().unwrap_or_else(|| panic!("{answer}")).len();
        }
        let (of_command, most) = median_and_max(&mut as_command);
        let (of_http, most_of_http) = median_and_max(&mut over_http);
        println!(
            "| {} | {messages} | {of_command:.1} | {most:.1} | {of_http:.1} | {most_of_http:.1} |",
            asked.0
        );
    }
    relay.child.kill().unwrap();
    relay.child.wait().unwrap();
}

#[expect(clippy::disallowed_methods, reason = "a benchmark's own settings")]
fn setting(name: &str, default: i64) -> i64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// Writes what a relay would have left: intents that are dispatched, and their receipts.
async fn fill(database: &mut PgConnection, rows: i64) {
    for first in (0..rows).step_by(usize::try_from(TRANSACTION).unwrap()) {
        sqlx::query(
            "insert into outbox.message (id, topic, key, payload, correlation_id, causation_id, traceparent, idempotency_key)
             select md5(n::text)::uuid, 'orders', 'account-' || n % 100000, convert_to(repeat('x', 200), 'UTF8'), 'req-' || n / 2,
               case when n % 2 = 1 then md5((n - 1)::text)::uuid::text end,
               case when n % 4 < 2 then '00-' || md5('trace' || n / 2) || '-00f067aa0ba902b7-01' end,
               case when n % 100000 = 0 then 'once-' || n end
             from generate_series($1::bigint, $2::bigint) n",
        )
        .bind(first)
        .bind((first + TRANSACTION).min(rows) - 1)
        .execute(&mut *database)
        .await
        .unwrap();
    }
    for seq in (0..rows).step_by(usize::try_from(PAGE).unwrap()) {
        receipts(database, seq + 1, (seq + PAGE).min(rows)).await;
    }
    sqlx::raw_sql(
        "update outbox.cursor set high = (select max(seq) from outbox.message), seen = pg_current_snapshot(),
           xid_bound = pg_current_xact_id();
         insert into outbox.term (epoch, relay, high) values (0, 'filled', 0)",
    )
    .execute(&mut *database)
    .await
    .unwrap();
    sqlx::raw_sql("vacuum (analyze)").execute(&mut *database).await.unwrap();
}

/// One page's receipts.
async fn receipts(database: &mut PgConnection, first: i64, last: i64) {
    let mut entries: Vec<ReceiptEntry> = (first..=last)
        .map(|seq| ReceiptEntry {
            seq: Seq(seq),
            topic: "orders".to_owned(),
            receipt: Receipt { partition: i32::try_from(seq % 12).unwrap(), offset: seq / 12 },
            acknowledged_ms_before: 7,
        })
        .collect();
    let count = i32::try_from(entries.len()).unwrap();
    sqlx::query(
        "insert into outbox.receipt (epoch, relay, out_of_order, cursor_before, cursor_after, seq_first, seq_last, messages, receipts)
         values (0, 'filled', false, ($1 - 1) || '@1:1:', $2 || '@1:1:', $1, $2, $3, $4)",
    )
    .bind(first)
    .bind(last)
    .bind(count)
    .bind(encode(&mut entries))
    .execute(database)
    .await
    .unwrap();
}

/// An id of each kind, from the middle.
async fn ids(database: &mut PgConnection, rows: i64) -> Vec<Asked> {
    let row = sqlx::query(
        "select m.id::text, m.correlation_id, substring(m.traceparent from 4 for 32), m.key, m.xid::text
         from outbox.message m where m.traceparent is not null and m.seq > $1 order by m.seq limit 1",
    )
    .bind(rows / 2)
    .fetch_one(&mut *database)
    .await
    .unwrap();
    let once: String = sqlx::query_scalar(
        "select m.idempotency_key from outbox.message m where m.idempotency_key is not null order by m.seq limit 1",
    )
    .fetch_one(&mut *database)
    .await
    .unwrap();
    vec![
        ("any id: message id", None, row.get(0)),
        ("message id", Some("message_id"), row.get(0)),
        ("correlation id", Some("correlation_id"), row.get(1)),
        ("trace id", Some("trace_id"), row.get(2)),
        ("idempotency key", Some("idempotency_key"), once),
        ("key", Some("key"), row.get(3)),
        ("xid", Some("xid"), row.get(4)),
        ("an id of nothing", None, "nobody-has-this".to_owned()),
    ]
}

fn command(url: &str, (_, flag, value): &Asked) {
    let mut arguments = vec!["trace".to_owned(), "--output=json".to_owned()];
    arguments
        .push(flag.map_or_else(|| value.clone(), |flag| format!("--{}={value}", flag.replace('_', "-"))));
    let output = Command::new(env!("CARGO_BIN_EXE_outboxd"))
        .args(arguments)
        .env("OUTBOXD__DATABASE__URL", url)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A relay that runs, and where it answers.
struct Started {
    child: Child,
    address: String,
}

impl Started {
    fn relay(url: &str, bootstrap: &str) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_outboxd"))
            .arg("run")
            .env("OUTBOXD__DATABASE__URL", url)
            .env("OUTBOXD__KAFKA__BOOTSTRAP_SERVERS", bootstrap)
            .env("OUTBOXD__HTTP__LISTEN", "127.0.0.1:0")
            .env("OUTBOXD__ADMIN__LISTEN", "127.0.0.1:0")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let address = loop {
            let line: serde_json::Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
            if line["target"] == "outboxd::admin" {
                break line["address"].as_str().unwrap().to_owned();
            }
        };
        // Its log goes on, and nobody may stand in its way.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, address }
    }

    fn ask(&self, (_, flag, value): &Asked) -> serde_json::Value {
        let by = flag.map_or_else(String::new, |flag| format!("?by={flag}"));
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        write!(stream, "GET /trace/{value}{by} HTTP/1.0\r\nHost: {}\r\n\r\n", self.address).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
    }
}

fn timed<T>(work: impl FnOnce() -> T) -> (f64, T) {
    let began = Instant::now();
    let done = work();
    (began.elapsed().as_secs_f64() * 1e3, done)
}

fn median_and_max(figures: &mut [f64]) -> (f64, f64) {
    figures.sort_by(f64::total_cmp);
    (figures[figures.len() / 2], figures[figures.len() - 1])
}
