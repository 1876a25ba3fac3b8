//! What is known of single intents. Everything comes as JSON that the statements build: see `sql/trace_*.sql`.

use outboxd_core::Seq;
use outboxd_engine::OutboxError;
use outboxd_engine::trace::{
    By, Claim, Claims, Contents, Fact, Intent, ReplayAsked, Standing, Trace, Transactions,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use sqlx::sqlite::{SqliteArguments, SqliteRow};
use sqlx::{Row, Sqlite, SqliteConnection};
use tokio::time::timeout;
use uuid::Uuid;

use crate::config::SqliteConfig;
use crate::lead::refused;
use crate::operator::{SqliteOperator, undecodable};
use crate::row::{headers, text};
use crate::session::{Failure, Session};

/// Undelivered messages before one that is asked for are counted so far.
const COUNTED_MAX: i64 = 10_001;

type Statement<'q> = sqlx::query::Query<'q, Sqlite, SqliteArguments>;

impl Trace for SqliteOperator {
    async fn trace_standing(&self) -> Result<Standing, OutboxError> {
        const DOING: &str = "read where the outbox stands";
        let statement = sqlx::query(include_str!("sql/trace_standing.sql"));
        let found = self.facts(DOING, statement, "standing").await?;
        found.into_iter().next().ok_or_else(|| OutboxError::Refused {
            finding: "the outbox has no cursor".to_owned(),
            remedy: "restore outbox_cursor from a backup, and run `outboxd rebase`".to_owned(),
        })
    }

    async fn trace_find(&self, by: &By, limit: u32) -> Result<Vec<Intent>, OutboxError> {
        const DOING: &str = "find intents";
        let mut lent = self.session.lend(&self.config, DOING, None).await?;
        let outcome = timeout(lent.deadline(), find(lent.connection(), by, limit)).await;
        lent.finish(DOING, outcome)
    }

    async fn trace_facts(&self, seqs: &[Seq]) -> Result<Vec<Fact>, OutboxError> {
        let statement = sqlx::query(include_str!("sql/trace_facts.sql")).bind(array(seqs)).bind(COUNTED_MAX);
        self.facts("read what is known of intents", statement, "fact").await
    }

    async fn trace_replays(&self, replays: &[i64]) -> Result<Vec<ReplayAsked>, OutboxError> {
        let statement = sqlx::query(include_str!("sql/trace_replays.sql")).bind(array(replays));
        self.facts("read who asked for replays", statement, "replay").await
    }

    /// SQLite shows nobody that a transaction is open, and its transactions have no numbers.
    async fn trace_transactions(&self, _xid: Option<u64>) -> Result<Option<Transactions>, OutboxError> {
        Ok(None)
    }

    async fn trace_contents(&self, seqs: &[Seq]) -> Result<Vec<Contents>, OutboxError> {
        const DOING: &str = "read payloads";
        let mut lent = self.session.lend(&self.config, DOING, None).await?;
        let outcome = timeout(lent.deadline(), contents(lent.connection(), seqs)).await;
        lent.finish(DOING, outcome)
    }
}

impl SqliteOperator {
    async fn facts<T: DeserializeOwned>(
        &self,
        doing: &'static str,
        statement: Statement<'_>,
        column: &str,
    ) -> Result<Vec<T>, OutboxError> {
        facts(&self.session, &self.config, doing, statement, column).await
    }
}

/// The inbox of a consumer in a SQLite file.
#[derive(Debug)]
pub struct SqliteInbox {
    config: SqliteConfig,
    session: Session,
}

impl SqliteInbox {
    /// An inbox in the file of the configuration. Nothing is opened yet.
    #[must_use]
    pub fn new(config: SqliteConfig) -> Self {
        Self { config, session: Session::default() }
    }
}

impl Claims for SqliteInbox {
    async fn claims(&self, ids: &[Uuid]) -> Result<Vec<Claim>, OutboxError> {
        let statement = sqlx::query(include_str!("sql/trace_claims.sql")).bind(array(ids));
        facts(&self.session, &self.config, "read the inbox", statement, "claim").await
    }
}

/// A statement whose rows are objects.
async fn facts<T: DeserializeOwned>(
    session: &Session,
    config: &SqliteConfig,
    doing: &'static str,
    statement: Statement<'_>,
    column: &str,
) -> Result<Vec<T>, OutboxError> {
    let mut lent = session.lend(config, doing, None).await?;
    let reading = async { Ok(objects(&statement.fetch_all(lent.connection()).await?, column)?) };
    let outcome = timeout(config.deadline, reading).await;
    lent.finish(doing, outcome)
}

fn objects<T: DeserializeOwned>(rows: &[SqliteRow], column: &str) -> Result<Vec<T>, sqlx::Error> {
    let object = |row: &SqliteRow| {
        let json: String = row.try_get(column)?;
        serde_json::from_str(&json).map_err(|error| undecodable(column, error))
    };
    rows.iter().map(object).collect()
}

async fn find(connection: &mut SqliteConnection, by: &By, limit: u32) -> Result<Vec<Intent>, Failure> {
    let statement = match by {
        By::Ids(ids) => {
            sqlx::query(include_str!("sql/trace_by_id.sql")).bind(array(&every_form(ids))).bind(limit)
        }
        By::Correlation(id) => sqlx::query(include_str!("sql/trace_by_correlation.sql")).bind(id).bind(limit),
        By::Causation(ids) => {
            sqlx::query(include_str!("sql/trace_by_causation.sql")).bind(array(ids)).bind(limit)
        }
        By::TraceId(id) => sqlx::query(include_str!("sql/trace_by_trace.sql")).bind(id).bind(limit),
        By::Idempotency(key) => {
            sqlx::query(include_str!("sql/trace_by_idempotency.sql")).bind(key).bind(limit)
        }
        By::Key { key, topic } => {
            sqlx::query(include_str!("sql/trace_by_key.sql")).bind(key).bind(limit).bind(topic)
        }
        By::Xid(_) => {
            return Err(refused(
                "transactions of SQLite have no numbers".to_owned(),
                "ask by another id: a correlation id set in the transaction ties its intents together",
            ));
        }
    };
    let rows = statement.fetch_all(&mut *connection).await?;
    let seqs: Vec<i64> = rows.iter().map(|row| row.try_get("seq")).collect::<Result<_, _>>()?;
    let intents = sqlx::query(include_str!("sql/trace_intents.sql")).bind(array(&seqs));
    Ok(objects(&intents.fetch_all(connection).await?, "intent")?)
}

/// As writers may have stored them: text in lower or upper case, or a blob.
fn every_form(ids: &[Uuid]) -> Vec<String> {
    let forms = |id: &Uuid| {
        let text = id.to_string();
        [text.to_uppercase(), text, id.simple().to_string()]
    };
    ids.iter().flat_map(forms).collect()
}

async fn contents(connection: &mut SqliteConnection, seqs: &[Seq]) -> Result<Vec<Contents>, Failure> {
    let rows =
        sqlx::query(include_str!("sql/trace_contents.sql")).bind(array(seqs)).fetch_all(connection).await?;
    let contents = |row: &SqliteRow| {
        let headers = text(row, "headers")?.and_then(|json| headers(Some(json)));
        Ok(Contents {
            seq: Seq(row.try_get("seq")?),
            key: text(row, "key")?,
            headers: headers.map(object_of),
            payload: row.try_get("payload")?,
        })
    };
    rows.iter().map(|row| contents(row).map_err(Failure::Database)).collect()
}

fn object_of(headers: Vec<(String, String)>) -> Value {
    Value::Object(headers.into_iter().map(|(name, value)| (name, Value::String(value))).collect())
}

/// A JSON array, as these statements take lists.
fn array<T: Serialize>(values: &[T]) -> String {
    serde_json::to_value(values).map_or_else(|_| "[]".to_owned(), |array| array.to_string())
}
