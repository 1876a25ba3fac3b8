//! `trace`.

mod record;

mod table;

mod watch;

use std::time::Duration;

use anyhow::anyhow;
use outboxd_engine::trace::{self, Claims as _, TraceQuery, Traced};
use outboxd_engine::{OutboxError, Receipts};
use outboxd_kafka::KafkaConfig;
use outboxd_postgres::{PostgresConfig, PostgresInbox, PostgresOperator, SchemaName};
use outboxd_sqlite::{SqliteConfig, SqliteInbox, SqliteOperator};
use secrecy::ExposeSecret as _;

use crate::adapters::Adapter;
use crate::cli::{Asked, Trace};
use crate::config::Database;
use crate::failure::Failure;
use crate::output;

/// A walk over a large table takes its time, and nobody's lead depends on it.
const WALK: Duration = Duration::from_secs(60);

/// Says what happened to a message or a transaction.
pub(crate) async fn trace(adapter: Adapter, kafka: &KafkaConfig, asked: &Trace) -> Result<(), Failure> {
    let query = query_of(asked.asked(), kafka, asked.limit).await?;
    let mut tracer = Tracer::new(with_time_to_walk(adapter));
    tracer.contents = asked.payload;
    for url in &asked.inbox_url {
        tracer.inboxes.push(Inbox::of(url, &asked.inbox_schema)?);
    }
    let format = asked.output.output;
    if asked.watch {
        return watch::watch(&tracer, &query, format).await;
    }
    let traced = tracer.answer(&query, &warn).await?;
    Ok(output::answer(format, &traced, table::text)?)
}

/// What to ask the outbox: of a record, its message, which Kafka tells.
///
/// # Errors
/// [`Failure::usage`] if there is no such record, [`Failure::unavailable`] if no broker answers.
pub(crate) async fn query_of(asked: Asked, kafka: &KafkaConfig, limit: u32) -> Result<TraceQuery, Failure> {
    match asked {
        Asked::Query(query) => Ok(query),
        Asked::Record(place) => record::message_at(kafka, place, limit).await,
    }
}

/// Says on standard error what keeps the answer waiting.
fn warn(text: &str) {
    eprintln!("outboxd: {text}");
}

fn with_time_to_walk(adapter: Adapter) -> Adapter {
    match adapter {
        Adapter::Postgres(mut config) => {
            config.deadline = WALK;
            Adapter::Postgres(config)
        }
        Adapter::Sqlite(mut config) => {
            config.deadline = WALK;
            Adapter::Sqlite(config)
        }
    }
}

/// Whom to ask.
#[derive(Debug)]
pub(crate) struct Tracer {
    outbox: Operator,
    inboxes: Vec<Inbox>,
    contents: bool,
}

#[derive(Debug)]
enum Operator {
    Postgres(Box<PostgresOperator>),
    Sqlite(SqliteOperator),
}

#[derive(Debug)]
enum Inbox {
    Postgres(Box<PostgresInbox>),
    Sqlite(SqliteInbox),
}

impl Inbox {
    fn of(url: &str, schema: &SchemaName) -> Result<Self, Failure> {
        let problem = |said: String| Failure::usage(anyhow!("--inbox-url {said}"));
        match Database::parse(url).map_err(problem)? {
            Database::Postgres { url } => {
                let url = Database::for_driver(&url);
                let config = PostgresConfig::from_url(url.expose_secret(), schema.clone(), "trace")
                    .map_err(Failure::usage)?;
                Ok(Self::Postgres(Box::new(PostgresInbox::new(config))))
            }
            Database::Sqlite { path } => Ok(Self::Sqlite(SqliteInbox::new(SqliteConfig::new(path)))),
        }
    }
}

impl Tracer {
    /// Asks this outbox alone, and for no payload.
    pub(crate) fn new(adapter: Adapter) -> Self {
        let outbox = match adapter {
            Adapter::Postgres(config) => Operator::Postgres(Box::new(PostgresOperator::new(*config))),
            Adapter::Sqlite(config) => Operator::Sqlite(SqliteOperator::new(config)),
        };
        Self { outbox, inboxes: Vec::new(), contents: false }
    }

    /// The answer, as every way to ask prints it. `told` is called before something that may take long.
    ///
    /// # Errors
    /// [`OutboxError`].
    pub(crate) async fn answer(
        &self,
        query: &TraceQuery,
        told: &(dyn Fn(&str) + Send + Sync),
    ) -> Result<Traced, OutboxError> {
        match &self.outbox {
            Operator::Postgres(outbox) => self.answer_of(&**outbox, query, told).await,
            Operator::Sqlite(outbox) => self.answer_of(outbox, query, told).await,
        }
    }

    async fn answer_of(
        &self,
        outbox: &(impl trace::Trace + Receipts),
        query: &TraceQuery,
        told: &(dyn Fn(&str) + Send + Sync),
    ) -> Result<Traced, OutboxError> {
        let mut gathered = trace::gather(outbox, query, told).await?;
        let ids = gathered.ids();
        for inbox in &self.inboxes {
            gathered.claims.extend(match inbox {
                Inbox::Postgres(inbox) => inbox.claims(&ids).await?,
                Inbox::Sqlite(inbox) => inbox.claims(&ids).await?,
            });
        }
        if self.contents {
            gathered.contents = outbox.trace_contents(&gathered.asked_seqs()).await?;
        }
        Ok(trace::tell(gathered))
    }
}
