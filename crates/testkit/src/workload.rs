//! An application that writes intents the way real ones do, and every awkward way besides.
//!
//! Each writer locks an aggregate (`update agg set n = n + 1 ... returning n`) and writes an intent that carries the number, in one
//! transaction: so the order that consumers must see is known. Some transactions write several keys, roll back to a
//! savepoint, roll back altogether, wait before they commit, are bulk inserts that others overtake, or never hear whether
//! their commit arrived. Nothing here is the truth about what was committed: that is the database's table alone.

use std::fmt::Write as _;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Pause of a writer whose database does not answer.
const RECONNECT_EVERY: Duration = Duration::from_millis(100);
/// How long a statement may take before a writer gives its connection up.
const STATEMENT: Duration = Duration::from_secs(20);
/// Keys of one bulk transaction.
const BULK_KEYS: usize = 7;

/// How large a test is: what the environment variable says, or this.
///
/// # Panics
/// If the variable is set and is no number.
#[must_use]
pub fn scale(variable: &str, default: u32) -> u32 {
    crate::cache::variable(variable)
        .map_or(default, |size| size.parse().unwrap_or_else(|_| panic!("{variable}={size} is no number")))
}

/// Transactions with very many intents.
#[derive(Clone, Copy, Debug)]
pub struct Bulk {
    /// Intents of one.
    pub rows: u32,
    /// How long one stays open after its last insert, at most: others overtake it.
    pub open_max: Duration,
    /// Pause of the bulk writer between two.
    pub pause: Duration,
}

/// What is written.
#[derive(Clone, Debug)]
pub struct Workload {
    /// Writers at the same time, besides the bulk writer.
    pub writers: usize,
    /// Aggregates that they share.
    pub keys: usize,
    /// Topics; a key belongs to one.
    pub topics: Vec<String>,
    /// How long a transaction waits before it commits, at most.
    pub open_max: Duration,
    /// Pause of a writer between two transactions, at most.
    pub pause_max: Duration,
    /// Transactions after which a writer ends by itself; `None`: not before it is stopped.
    pub transactions: Option<u32>,
    /// One more writer, of bulk transactions.
    pub bulk: Option<Bulk>,
    /// Whether some commits are asynchronous: a crash of the database may take them back.
    pub asynchronous: bool,
    /// What every random choice comes from.
    pub seed: u64,
}

impl Workload {
    /// Writers that load a small machine without pause.
    #[must_use]
    pub fn new(topics: &[String], seed: u64) -> Self {
        Self {
            writers: 4,
            keys: 20,
            topics: topics.to_vec(),
            open_max: Duration::from_millis(10),
            pause_max: Duration::from_millis(5),
            transactions: None,
            bulk: None,
            asynchronous: false,
            seed,
        }
    }

    /// Makes the aggregates and starts the writers.
    ///
    /// # Panics
    /// If the database does not answer.
    pub async fn start(&self, url: &str) -> Writing {
        let mut connection = PgConnection::connect(url).await.expect("connect the application");
        sqlx::raw_sql("create table if not exists agg (k text primary key, n bigint not null default 0)")
            .execute(&mut connection)
            .await
            .expect("create the application's table");
        for key in 0..self.keys {
            sqlx::query("insert into agg (k) values ($1) on conflict do nothing")
                .bind(format!("k{key}"))
                .execute(&mut connection)
                .await
                .expect("create an aggregate");
        }
        let (stop, stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        for number in 0..self.writers {
            tasks.spawn(self.writer(number, url, &stopped).run());
        }
        if let Some(bulk) = self.bulk {
            tasks.spawn(self.writer(self.writers, url, &stopped).run_bulk(bulk));
        }
        Writing { stop, tasks }
    }

    fn writer(&self, number: usize, url: &str, stopped: &watch::Receiver<bool>) -> Writer {
        Writer {
            workload: self.clone(),
            number,
            url: url.to_owned(),
            rng: StdRng::seed_from_u64(self.seed.wrapping_mul(1_000).wrapping_add(number as u64)),
            stopped: stopped.clone(),
            transaction: 0,
            written: Written::default(),
        }
    }
}

/// What the writers believe to have done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Transactions whose commit was answered.
    pub committed: u64,
    /// Transactions that were rolled back on purpose.
    pub rolled_back: u64,
    /// Transactions whose commit was sent and whose answer nobody waited for.
    pub ambiguous: u64,
    /// Transactions that the database did not let through.
    pub failed: u64,
}

/// Writers at work.
#[derive(Debug)]
pub struct Writing {
    stop: watch::Sender<bool>,
    tasks: JoinSet<Written>,
}

impl Writing {
    /// Stops the writers after the transaction that each is in, and says what they did.
    ///
    /// # Panics
    /// If a writer panicked.
    pub async fn stop(self) -> Written {
        self.stop.send_replace(true);
        self.finished().await
    }

    /// Waits until the writers have ended by themselves.
    ///
    /// # Panics
    /// If a writer panicked.
    pub async fn finished(mut self) -> Written {
        let mut sum = Written::default();
        while let Some(written) = self.tasks.join_next().await {
            let written = written.expect("a writer ends");
            sum.committed += written.committed;
            sum.rolled_back += written.rolled_back;
            sum.ambiguous += written.ambiguous;
            sum.failed += written.failed;
        }
        sum
    }
}

#[derive(Debug)]
struct Writer {
    workload: Workload,
    number: usize,
    url: String,
    rng: StdRng,
    stopped: watch::Receiver<bool>,
    transaction: u64,
    written: Written,
}

/// How a transaction ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Commit,
    Rollback,
    /// The commit is sent and the connection given up at once.
    Ambiguous,
}

impl Writer {
    async fn run(mut self) -> Written {
        let mut connection = None;
        while !self.is_done() {
            let mut open = self.connected(connection.take()).await;
            match self.transaction(&mut open).await {
                Ok(Ending::Ambiguous) => drop(open),
                Ok(Ending::Commit | Ending::Rollback) => connection = Some(open),
                Err(_) => self.written.failed += 1,
            }
            let pause = self.up_to(self.workload.pause_max);
            self.pause(pause).await;
        }
        self.written
    }

    async fn run_bulk(mut self, bulk: Bulk) -> Written {
        let mut connection = None;
        while !self.is_done() {
            let mut open = self.connected(connection.take()).await;
            match self.bulk(&mut open, bulk).await {
                Ok(()) => connection = Some(open),
                Err(_) => self.written.failed += 1,
            }
            self.pause(bulk.pause).await;
        }
        self.written
    }

    fn is_done(&self) -> bool {
        *self.stopped.borrow()
            || self.workload.transactions.is_some_and(|max| self.transaction >= u64::from(max))
    }

    /// Waits, and wakes early to stop.
    async fn pause(&mut self, pause: Duration) {
        // Both outcomes mean the same: look whether to stop.
        let _ = tokio::time::timeout(pause, self.stopped.changed()).await;
    }

    fn up_to(&mut self, max: Duration) -> Duration {
        max.mul_f64(self.rng.random::<f64>())
    }

    async fn connected(&mut self, connection: Option<PgConnection>) -> PgConnection {
        if let Some(connection) = connection {
            return connection;
        }
        loop {
            let connecting = tokio::time::timeout(STATEMENT, PgConnection::connect(&self.url));
            if let Ok(Ok(connection)) = connecting.await {
                return connection;
            }
            tokio::time::sleep(RECONNECT_EVERY).await;
        }
    }

    async fn transaction(&mut self, connection: &mut PgConnection) -> Result<Ending, sqlx::Error> {
        self.transaction += 1;
        execute(connection, "begin").await?;
        if self.workload.asynchronous && self.rng.random_bool(0.3) {
            execute(connection, "set local synchronous_commit = off").await?;
        }
        let keys = self.some_keys();
        if self.rng.random_bool(0.15) {
            // Drawn and given back: seq has holes, and aggregates do not.
            execute(connection, "savepoint s").await?;
            for key in &keys {
                self.change(connection, *key).await?;
            }
            execute(connection, "rollback to savepoint s").await?;
        }
        let nested = self.rng.random_bool(0.2);
        if nested {
            // The rows below carry a subtransaction's xmin, and the top transaction's xid.
            execute(connection, "savepoint t").await?;
        }
        for key in &keys {
            self.change(connection, *key).await?;
        }
        if nested && self.rng.random_bool(0.5) {
            execute(connection, "release savepoint t").await?;
        }
        let open = self.up_to(self.workload.open_max);
        tokio::time::sleep(open).await;
        let ending = match self.rng.random_range(0..100) {
            0..12 => Ending::Rollback,
            12..17 => Ending::Ambiguous,
            _ => Ending::Commit,
        };
        match ending {
            Ending::Commit => {
                execute(connection, "commit").await?;
                self.written.committed += 1;
            }
            Ending::Rollback => {
                execute(connection, "rollback").await?;
                self.written.rolled_back += 1;
            }
            Ending::Ambiguous => {
                let patience = self.up_to(Duration::from_millis(2));
                // Whatever the answer, nobody hears it.
                drop(tokio::time::timeout(patience, execute(connection, "commit")).await);
                self.written.ambiguous += 1;
            }
        }
        Ok(ending)
    }

    /// Aggregates of one transaction, in the order in which every writer locks them.
    fn some_keys(&mut self) -> Vec<usize> {
        let count = if self.rng.random_bool(0.25) { self.rng.random_range(2..=4) } else { 1 };
        let mut keys: Vec<usize> = (0..count).map(|_| self.rng.random_range(0..self.workload.keys)).collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    }

    /// Locks and changes an aggregate, then writes the intent that says so.
    async fn change(&mut self, connection: &mut PgConnection, key: usize) -> Result<(), sqlx::Error> {
        let topic = &self.workload.topics[key % self.workload.topics.len()];
        let key = format!("k{key}");
        let transaction = format!("{}-{}", self.number, self.transaction);
        if self.rng.random_bool(0.5) {
            let n: i64 = sqlx::query_scalar("update agg set n = n + 1 where k = $1 returning n")
                .bind(&key)
                .fetch_one(&mut *connection)
                .await?;
            sqlx::query(
                "insert into outbox.message (topic, key, payload) values ($1, $2, convert_to($3, 'UTF8'))",
            )
            .bind(topic)
            .bind(&key)
            .bind(payload(&key, n, &transaction))
            .execute(connection)
            .await?;
        } else {
            // One statement that waits for the aggregate's lock in the middle of its insert.
            sqlx::query(
                "with u as (update agg set n = n + 1 where k = $2 returning n)
                 insert into outbox.message (topic, key, payload)
                 values ($1, $2, convert_to(json_build_object('k', $2::text, 'n', (select n from u), 'tx', $3::text)::text, 'UTF8'))",
            )
            .bind(topic)
            .bind(&key)
            .bind(&transaction)
            .execute(connection)
            .await?;
        }
        Ok(())
    }

    /// Inserts many intents of keys that are this writer's own, and stays open while others commit.
    async fn bulk(&mut self, connection: &mut PgConnection, bulk: Bulk) -> Result<(), sqlx::Error> {
        self.transaction += 1;
        let mut insert = String::from(
            "insert into outbox.message (topic, key, payload)
             select $1, k, convert_to(json_build_object('k', k, 'n', n, 'tx', $2::text)::text, 'UTF8')
             from (select 'bulk-' || $2::text || '-' || g % ",
        );
        // Writing to a String cannot fail.
        let _ = write!(insert, "{BULK_KEYS} as k, g as n from generate_series(1, $3) g order by g) bulk");
        execute(connection, "begin").await?;
        sqlx::query(AssertSqlSafe(insert))
            .bind(&self.workload.topics[0])
            .bind(format!("{}-{}", self.number, self.transaction))
            .bind(i64::from(bulk.rows))
            .execute(&mut *connection)
            .await?;
        let open = self.up_to(bulk.open_max);
        tokio::time::sleep(open).await;
        if self.rng.random_bool(0.1) {
            execute(connection, "rollback").await?;
            self.written.rolled_back += 1;
        } else {
            execute(connection, "commit").await?;
            self.written.committed += 1;
        }
        Ok(())
    }
}

async fn execute(connection: &mut PgConnection, statement: &'static str) -> Result<(), sqlx::Error> {
    let executing = sqlx::query(statement).execute(connection);
    match tokio::time::timeout(STATEMENT, executing).await {
        Ok(executed) => executed.map(drop),
        Err(_) => Err(sqlx::Error::WorkerCrashed),
    }
}

fn payload(key: &str, n: i64, transaction: &str) -> String {
    serde_json::json!({ "k": key, "n": n, "tx": transaction }).to_string()
}
