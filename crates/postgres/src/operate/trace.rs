//! What is known of single intents. Everything comes as JSON that the statements build: see `sql/trace_*.sql`.

use outboxd_core::Seq;
use outboxd_engine::OutboxError;
use outboxd_engine::trace::{
    By, Claim, Claims, Contents, Fact, Intent, ReplayAsked, Standing, Trace, Transactions,
};
use serde::de::DeserializeOwned;
use sqlx::postgres::PgRow;
use sqlx::types::Json;
use sqlx::{Row, SqlStr};
use uuid::Uuid;

use super::PostgresOperator;
use crate::lead::LEAD_LOCK;
use crate::schema::{render, render_word};
use crate::session::{Call, CallError, PostgresConfig, Purpose, Session};

/// Undelivered messages before one that is asked for are counted so far.
const COUNTED_MAX: i64 = 10_001;

impl Trace for PostgresOperator {
    async fn trace_standing(&self) -> Result<Standing, OutboxError> {
        let mut call = self.session.call("read where the outbox stands").await?;
        let sql = self.traced(include_str!("../sql/trace_standing.sql"));
        let row = call.row(sqlx::query(sql).persistent(false).bind(i64::from(LEAD_LOCK))).await?;
        let Json(standing) = call.value(row.try_get("standing"))?;
        call.done();
        Ok(standing)
    }

    async fn trace_find(&self, by: &By, limit: u32) -> Result<Vec<Intent>, OutboxError> {
        let mut call = self.session.call("find intents").await?;
        let limit = i64::from(limit);
        let query = |file| sqlx::query(self.traced(file)).persistent(false);
        let statement = match by {
            By::Ids(ids) => query(include_str!("../sql/trace_by_id.sql")).bind(ids).bind(limit),
            By::Correlation(id) => {
                query(include_str!("../sql/trace_by_correlation.sql")).bind(id).bind(limit)
            }
            By::Causation(ids) => query(include_str!("../sql/trace_by_causation.sql")).bind(ids).bind(limit),
            By::TraceId(id) => query(include_str!("../sql/trace_by_trace.sql")).bind(id).bind(limit),
            By::Idempotency(key) => {
                query(include_str!("../sql/trace_by_idempotency.sql")).bind(key).bind(limit)
            }
            By::Key { key, topic } => {
                self.may_read(&mut call, "keys", "key").await?;
                query(include_str!("../sql/trace_by_key.sql")).bind(key).bind(limit).bind(topic)
            }
            By::Xid(xid) => query(include_str!("../sql/trace_by_xid.sql")).bind(xid.to_string()).bind(limit),
        };
        let rows = call.rows(statement).await.map_err(|error| took_too_long(error, by))?;
        let intents = all(&call, &rows, "intent")?;
        call.done();
        Ok(intents)
    }

    async fn trace_facts(&self, seqs: &[Seq]) -> Result<Vec<Fact>, OutboxError> {
        let mut call = self.session.call("read what is known of intents").await?;
        let sql = self.traced(include_str!("../sql/trace_facts.sql"));
        let rows =
            call.rows(sqlx::query(sql).persistent(false).bind(numbers(seqs)).bind(COUNTED_MAX)).await?;
        let facts = all(&call, &rows, "fact")?;
        call.done();
        Ok(facts)
    }

    async fn trace_replays(&self, replays: &[i64]) -> Result<Vec<ReplayAsked>, OutboxError> {
        let mut call = self.session.call("read who asked for replays").await?;
        let sql = self.traced(include_str!("../sql/trace_replays.sql"));
        let rows = call.rows(sqlx::query(sql).persistent(false).bind(replays)).await?;
        let replays = all(&call, &rows, "replay")?;
        call.done();
        Ok(replays)
    }

    async fn trace_transactions(&self, xid: Option<u64>) -> Result<Option<Transactions>, OutboxError> {
        let mut call = self.session.call("look at open transactions").await?;
        let sql = self.traced(include_str!("../sql/trace_transactions.sql"));
        let row = call.row(sqlx::query(sql).persistent(false).bind(xid.map(|xid| xid.to_string()))).await?;
        let Json(transactions) = call.value(row.try_get("transactions"))?;
        call.done();
        Ok(Some(transactions))
    }

    async fn trace_contents(&self, seqs: &[Seq]) -> Result<Vec<Contents>, OutboxError> {
        let mut call = self.session.call("read payloads").await?;
        self.may_read(&mut call, "keys", "key").await?;
        self.may_read(&mut call, "payloads", "headers, payload").await?;
        let sql = self.traced(include_str!("../sql/trace_contents.sql"));
        let rows = call.rows(sqlx::query(sql).persistent(false).bind(numbers(seqs))).await?;
        let contents = |row: &PgRow| {
            Ok(Contents {
                seq: Seq(row.try_get("seq")?),
                key: row.try_get("key")?,
                headers: row.try_get::<Option<Json<_>>, _>("headers")?.map(|Json(headers)| headers),
                payload: row.try_get("payload")?,
            })
        };
        let contents = call.value(rows.iter().map(contents).collect())?;
        call.done();
        Ok(contents)
    }
}

impl PostgresOperator {
    fn traced(&self, file: &'static str) -> SqlStr {
        render(file, &self.config.schema)
    }

    /// Refuses what the role may not read, with the grant that is missing.
    async fn may_read(&self, call: &mut Call<'_>, what: &str, columns: &str) -> Result<(), OutboxError> {
        let row = call
            .row(sqlx::query(self.traced(include_str!("../sql/trace_may_read.sql"))).persistent(false))
            .await?;
        let role: String = call.value(row.try_get("role"))?;
        if call.value(row.try_get::<bool, _>(what))? {
            return Ok(());
        }
        let schema = &self.config.schema;
        Err(OutboxError::Refused {
            finding: format!(
                "role {role} may not read {what}: it lacks select ({columns}) on {schema}.message"
            ),
            remedy: format!(
                "ask as the relay's role, or as the owner: grant select ({columns}) on {schema}.message to {role}"
            ),
        })
    }
}

/// The inbox of a consumer.
#[derive(Debug)]
pub struct PostgresInbox {
    config: PostgresConfig,
    session: Session,
}

impl PostgresInbox {
    /// An inbox in the schema of the configuration. Connects when first asked something.
    #[must_use]
    pub fn new(config: PostgresConfig) -> Self {
        Self { session: Session::new(&config, Purpose::Operate), config }
    }
}

impl Claims for PostgresInbox {
    async fn claims(&self, ids: &[Uuid]) -> Result<Vec<Claim>, OutboxError> {
        let mut call = self.session.call("read the inbox").await?;
        let sql = render_word(include_str!("../sql/trace_claims.sql"), "inbox", &self.config.schema);
        let rows = call.rows(sqlx::query(sql).persistent(false).bind(ids)).await?;
        let claims = all(&call, &rows, "claim")?;
        call.done();
        Ok(claims)
    }
}

fn numbers(seqs: &[Seq]) -> Vec<i64> {
    seqs.iter().map(|seq| seq.0).collect()
}

/// A column of JSON, row by row.
fn all<T: DeserializeOwned>(call: &Call<'_>, rows: &[PgRow], column: &str) -> Result<Vec<T>, OutboxError> {
    let read = |row: &PgRow| row.try_get::<Json<_>, _>(column).map(|Json(value)| value);
    call.value(rows.iter().map(read).collect())
}

/// A walk over the table that took longer than a call may.
fn took_too_long(error: OutboxError, by: &By) -> OutboxError {
    let OutboxError::Unavailable { source, .. } = &error else { return error };
    let cause = source.downcast_ref::<CallError>();
    let timed_out =
        cause.is_some_and(|cause| cause.code() == Some("57014") || matches!(cause, CallError::Deadline(_)));
    if !timed_out || by.index().is_none() {
        return error;
    }
    OutboxError::Refused {
        finding: format!(
            "looking for a {} walks over every intent, and took longer than a call may",
            by.what()
        ),
        remedy: "build the indexes: `outboxd migrate trace-indexes`".to_owned(),
    }
}
