//! A consumer as it should be: idempotent on the message's id.
//!
//! It keeps the ids that it has handled in its own database, claims an id *before* the side effect and in the same
//! transaction, and so has each effect once however often a message comes. The table of effects has no unique key on
//! purpose: if the claim were forgotten, the tally would see every effect twice.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use outboxd_kafka::{KafkaConfig, ReadRecord, RecordReader};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, SqliteConnection};
use tokio::task::JoinSet;
use uuid::Uuid;

use super::tally::{Delivery, Place};

/// Failed reads in a row after which the consumer gives up: a minute.
const FAILURES_MAX: u32 = 600;

/// Between a failed read and the next.
const FAILURE_PAUSE: Duration = Duration::from_millis(100);

const TABLES: &str = "
create table claimed (id text primary key) without rowid;
create table effect (
  id text not null, correlation_id text not null, what text not null,
  at text not null default (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')));
create table delivery (
  topic text not null, partition integer not null, offset integer not null, id text not null,
  correlation_id text not null, first integer not null, lag_ms integer not null,
  at text not null default (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
  primary key (topic, partition, offset));
create index delivery_correlation_id on delivery (correlation_id);
";

/// The consumer, reading in a task of its own.
#[derive(Debug)]
pub(crate) struct Consumer {
    path: PathBuf,
    counts: Arc<Counts>,
    task: JoinSet<anyhow::Result<()>>,
}

/// What it has done so far.
#[derive(Debug, Default)]
struct Counts {
    effects: AtomicU64,
    duplicates: AtomicU64,
}

/// What it has done so far, at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Consumed {
    /// Side effects, one for each id.
    pub(crate) effects: u64,
    /// Records whose id had been claimed before.
    pub(crate) duplicates: u64,
}

/// A record as the consumer remembers it.
#[derive(Clone, Debug)]
pub(crate) struct Remembered {
    /// Where it was and what id it had.
    pub(crate) delivery: Delivery,
    /// Whether it was the first with its id, and so had the effect.
    pub(crate) first: bool,
    /// When it was handled.
    pub(crate) at: String,
}

impl Consumed {
    /// Records read.
    pub(crate) fn records(self) -> u64 {
        self.effects + self.duplicates
    }
}

impl Consumer {
    /// Reads these topics from their beginning, with a database of its own in the directory.
    pub(crate) async fn start(
        kafka: &KafkaConfig,
        topics: &[&str],
        directory: &Path,
    ) -> anyhow::Result<Self> {
        let path = directory.join("consumer.db");
        let mut database = connect(&path, true).await?;
        sqlx::raw_sql(TABLES).execute(&mut database).await.context("create the consumer's tables")?;
        let reader = RecordReader::from_beginning(kafka, topics).await?;
        let counts = Arc::new(Counts::default());
        let mut task = JoinSet::new();
        task.spawn(consume(reader, database, Arc::clone(&counts)));
        Ok(Self { path, counts, task })
    }

    /// What it has done so far.
    pub(crate) fn consumed(&self) -> Consumed {
        Consumed {
            effects: self.counts.effects.load(Ordering::Acquire),
            duplicates: self.counts.duplicates.load(Ordering::Acquire),
        }
    }

    /// Fails if it has stopped reading.
    pub(crate) fn check(&mut self) -> anyhow::Result<()> {
        match self.task.try_join_next() {
            Some(ended) => ended?.and_then(|()| anyhow::bail!("the consumer has ended")),
            None => Ok(()),
        }
    }

    /// Every record that it read, and the id of every effect that it had.
    pub(crate) async fn account(&self) -> anyhow::Result<(Vec<Delivery>, Vec<Uuid>)> {
        let mut database = connect(&self.path, false).await?;
        let deliveries: Vec<(String, i32, i64, String)> =
            sqlx::query_as("select topic, partition, offset, id from delivery")
                .fetch_all(&mut database)
                .await?;
        let effects: Vec<(String,)> =
            sqlx::query_as("select id from effect").fetch_all(&mut database).await?;
        database.close().await?;
        let deliveries = deliveries.into_iter().map(|(topic, partition, offset, id)| {
            Ok(Delivery { place: Place { topic, partition, offset }, id: id.parse()? })
        });
        let effects = effects.into_iter().map(|(id,)| Ok(id.parse()?));
        Ok((deliveries.collect::<anyhow::Result<_>>()?, effects.collect::<anyhow::Result<_>>()?))
    }

    /// What it remembers of one correlation id, in the order in which it happened.
    pub(crate) async fn remembers(&self, correlation_id: &str) -> anyhow::Result<Vec<Remembered>> {
        let mut database = connect(&self.path, false).await?;
        let rows: Vec<(String, i32, i64, String, bool, String)> = sqlx::query_as(
            "select topic, partition, offset, id, first, at from delivery where correlation_id = ?1 order by rowid",
        )
        .bind(correlation_id)
        .fetch_all(&mut database)
        .await?;
        database.close().await?;
        let rows = rows.into_iter().map(|(topic, partition, offset, id, first, at)| {
            let delivery = Delivery { place: Place { topic, partition, offset }, id: id.parse()? };
            Ok(Remembered { delivery, first, at })
        });
        rows.collect()
    }

    /// The correlation id with the most duplicates; the earliest, if several have as many.
    pub(crate) async fn most_repeated(&self) -> anyhow::Result<Option<String>> {
        let mut database = connect(&self.path, false).await?;
        let found: Option<(String,)> = sqlx::query_as(
            "select correlation_id from delivery group by correlation_id order by sum(not first) desc, min(rowid) limit 1",
        )
        .fetch_optional(&mut database)
        .await?;
        database.close().await?;
        Ok(found.map(|(correlation_id,)| correlation_id))
    }

    /// From the insert of an intent to the moment in which its first copy was published: the median and the 99th
    /// percentile of the records since then, in milliseconds.
    pub(crate) async fn lag_ms(&self, since: Consumed) -> anyhow::Result<Option<(i64, i64)>> {
        let mut database = connect(&self.path, false).await?;
        let lags: Vec<(i64,)> =
            sqlx::query_as("select lag_ms from delivery where first and rowid > ?1 order by lag_ms")
                .bind(i64::try_from(since.records())?)
                .fetch_all(&mut database)
                .await?;
        database.close().await?;
        let at = |hundredths: usize| lags.get(lags.len() * hundredths / 100).map(|(lag,)| *lag);
        Ok(at(50).zip(at(99)))
    }

    /// Stops reading.
    pub(crate) async fn stop(&mut self) {
        self.task.shutdown().await;
    }
}

async fn connect(path: &Path, create: bool) -> anyhow::Result<SqliteConnection> {
    SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(create)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Normal)
        .busy_timeout(Duration::from_secs(10))
        .disable_statement_logging()
        .connect()
        .await
        .context("open the consumer's database")
}

async fn consume(
    reader: RecordReader,
    mut database: SqliteConnection,
    counts: Arc<Counts>,
) -> anyhow::Result<()> {
    let mut failures = 0;
    loop {
        let record = match reader.next().await {
            Ok(record) => record,
            // A broker that is away makes itself heard more than once; the reader goes on where it was.
            Err(error) if failures >= FAILURES_MAX => return Err(error.into()),
            Err(_) => {
                failures += 1;
                tokio::time::sleep(FAILURE_PAUSE).await;
                continue;
            }
        };
        failures = 0;
        let count = if handle(&mut database, &record).await? { &counts.effects } else { &counts.duplicates };
        count.fetch_add(1, Ordering::Release);
    }
}

/// Handles one record; whether it had an effect.
async fn handle(database: &mut SqliteConnection, record: &ReadRecord) -> anyhow::Result<bool> {
    let id = record.header("id").context("a record without an id")?;
    let correlation_id = record.header("correlation-id").context("a record without a correlation id")?;
    let mut transaction = database.begin_with("begin immediate").await?;
    let claimed = sqlx::query("insert into claimed (id) values (?1) on conflict do nothing")
        .bind(id)
        .execute(&mut *transaction)
        .await?;
    let first = claimed.rows_affected() == 1;
    if first {
        let payload = record.payload.as_deref().unwrap_or_default();
        let what: serde_json::Value = serde_json::from_slice(payload).context("read a payload")?;
        sqlx::query("insert into effect (id, correlation_id, what) values (?1, ?2, ?3)")
            .bind(id)
            .bind(correlation_id)
            .bind(what["event"].as_str().unwrap_or_default())
            .execute(&mut *transaction)
            .await?;
    }
    sqlx::query(
        "insert into delivery (topic, partition, offset, id, correlation_id, first, lag_ms) \
         values (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    )
    .bind(&record.topic)
    .bind(record.partition)
    .bind(record.offset)
    .bind(id)
    .bind(correlation_id)
    .bind(first)
    .bind(lag_ms(record).context("a record without the time of its intent")?)
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(first)
}

/// From the insert of the intent to the moment of publishing.
fn lag_ms(record: &ReadRecord) -> Option<i64> {
    use time::format_description::well_known::Rfc3339;
    let inserted = time::OffsetDateTime::parse(record.header("outbox-time")?, &Rfc3339).ok()?;
    let inserted_ms = i64::try_from(inserted.unix_timestamp_nanos() / 1_000_000).ok()?;
    Some((record.timestamp_ms? - inserted_ms).max(0))
}
