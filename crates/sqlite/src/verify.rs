//! What a proof of delivery asks, and the canary. SQLite has no SHA-256, so payloads are hashed here and go no further.

use std::collections::HashSet;

use outboxd_core::Seq;
use outboxd_core::verify::{Fingerprint, Sha256};
use outboxd_engine::{Canary, History, OutboxError, Rewind, TermSpan, Verify, Wanted};
use sha2::Digest as _;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};
use time::OffsetDateTime;
use tokio::time::timeout;
use uuid::Uuid;

use crate::operator::SqliteOperator;
use crate::row::{self, timestamp};
use crate::session::Failure;

/// Terms and rewinds that are looked at.
const HISTORY_MAX: i64 = 10_000;

impl Verify for SqliteOperator {
    async fn ends(&self) -> Result<Option<(Seq, Seq)>, OutboxError> {
        const DOING: &str = "look for messages";
        let mut lent = self.session.lend(&self.config, DOING, None).await?;
        let outcome = timeout(lent.deadline(), ends(lent.connection())).await;
        lent.finish(DOING, outcome)
    }

    async fn inserted_at(&self, at_or_above: Seq) -> Result<Option<(Seq, OffsetDateTime)>, OutboxError> {
        const DOING: &str = "look for a time";
        let mut lent = self.session.lend(&self.config, DOING, None).await?;
        let outcome = timeout(lent.deadline(), inserted_at(lent.connection(), at_or_above)).await;
        lent.finish(DOING, outcome)
    }

    async fn fingerprints(&self, wanted: &Wanted) -> Result<Vec<Fingerprint>, OutboxError> {
        const DOING: &str = "read what was published";
        let mut lent = self.session.lend(&self.config, DOING, None).await?;
        let outcome = timeout(lent.deadline(), fingerprints(lent.connection(), wanted)).await;
        lent.finish(DOING, outcome)
    }

    async fn named(&self, ids: &[Uuid], above: Seq, upto: Seq) -> Result<Vec<(Uuid, Seq)>, OutboxError> {
        const DOING: &str = "look for ids";
        let mut lent = self.session.lend(&self.config, DOING, None).await?;
        let outcome = timeout(lent.deadline(), named(lent.connection(), ids, above, upto)).await;
        lent.finish(DOING, outcome)
    }

    async fn tried_again(&self, seqs: &[Seq]) -> Result<Vec<Seq>, OutboxError> {
        const DOING: &str = "read what was held";
        let mut lent = self.session.lend(&self.config, DOING, None).await?;
        let asking = sqlx::query_scalar(include_str!("sql/verify_tried.sql")).bind(json_array(seqs));
        let asking = async { Ok(asking.fetch_all(lent.connection()).await?) };
        let outcome = timeout(self.config.deadline, asking).await;
        let found: Vec<i64> = lent.finish(DOING, outcome)?;
        Ok(found.into_iter().map(Seq).collect())
    }

    async fn history(&self) -> Result<History, OutboxError> {
        const DOING: &str = "read the history";
        let mut lent = self.session.lend(&self.config, DOING, None).await?;
        let outcome = timeout(lent.deadline(), history(lent.connection())).await;
        lent.finish(DOING, outcome)
    }
}

impl Canary for SqliteOperator {
    async fn emit_canary(&self, topic: &str) -> Result<Uuid, OutboxError> {
        const DOING: &str = "emit a canary";
        let mut lent = self.session.lend(&self.config, DOING, None).await?;
        let outcome = timeout(lent.deadline(), emit_canary(lent.connection(), topic)).await;
        lent.finish(DOING, outcome)
    }
}

async fn emit_canary(connection: &mut SqliteConnection, topic: &str) -> Result<Uuid, Failure> {
    let row = sqlx::query(include_str!("sql/canary.sql")).bind(topic).fetch_one(connection).await?;
    Ok(row::id(row.try_get("id")?).unwrap_or_default())
}

async fn ends(connection: &mut SqliteConnection) -> Result<Option<(Seq, Seq)>, Failure> {
    let row = sqlx::query(include_str!("sql/verify_ends.sql")).fetch_one(connection).await?;
    let (first, high): (Option<i64>, i64) = (row.try_get("first")?, row.try_get("high")?);
    Ok(first.filter(|first| *first <= high).map(|first| (Seq(first), Seq(high))))
}

async fn inserted_at(
    connection: &mut SqliteConnection,
    at_or_above: Seq,
) -> Result<Option<(Seq, OffsetDateTime)>, Failure> {
    let statement = sqlx::query(include_str!("sql/verify_inserted_at.sql")).bind(at_or_above.0);
    let Some(row) = statement.fetch_optional(connection).await? else { return Ok(None) };
    Ok(Some((Seq(row.try_get("seq")?), when(&row, "created_at")?)))
}

async fn fingerprints(
    connection: &mut SqliteConnection,
    wanted: &Wanted,
) -> Result<Vec<Fingerprint>, Failure> {
    let statement = match wanted {
        Wanted::Next { above, upto, limit } => {
            sqlx::query(include_str!("sql/verify_next.sql")).bind(above.0).bind(upto.0).bind(*limit)
        }
        Wanted::At(seqs) => sqlx::query(include_str!("sql/verify_at.sql")).bind(json_array(seqs)),
    };
    let rows = statement.fetch_all(connection).await?;
    rows.iter().map(fingerprint).collect()
}

fn fingerprint(row: &SqliteRow) -> Result<Fingerprint, Failure> {
    let bytes = |column| row.try_get::<Option<&[u8]>, _>(column);
    let is_edited: bool = row.try_get("is_edited")?;
    let edited = is_edited.then(|| bytes("edited")).transpose()?;
    Ok(Fingerprint {
        seq: Seq(row.try_get("seq")?),
        id: row::id(row.try_get("id")?).unwrap_or_default(),
        topic: row::text(row, "topic")?.unwrap_or_default(),
        created_at: when(row, "created_at")?,
        key: row::text(row, "key")?.map(|key| hash(key.as_bytes())),
        payload: bytes("payload")?.map(hash),
        edited: edited.map(|payload| payload.map(hash)),
    })
}

async fn named(
    connection: &mut SqliteConnection,
    ids: &[Uuid],
    above: Seq,
    upto: Seq,
) -> Result<Vec<(Uuid, Seq)>, Failure> {
    let ids: HashSet<Uuid> = ids.iter().copied().collect();
    let statement = sqlx::query(include_str!("sql/verify_named.sql")).bind(above.0).bind(upto.0);
    let mut found = Vec::new();
    for row in statement.fetch_all(connection).await? {
        if let Some(id) = row::id(row.try_get("id")?).filter(|id| ids.contains(id)) {
            found.push((id, Seq(row.try_get("seq")?)));
        }
    }
    Ok(found)
}

async fn history(connection: &mut SqliteConnection) -> Result<History, Failure> {
    let mut terms = Vec::new();
    let statement = sqlx::query(include_str!("sql/verify_terms.sql")).bind(HISTORY_MAX);
    for row in statement.fetch_all(&mut *connection).await? {
        terms.push(TermSpan {
            epoch: row.try_get("epoch")?,
            led_at: when(&row, "led_at")?,
            ended_at: timestamp(&row, "ended_at")?,
        });
    }
    terms.reverse();
    let mut rewinds = Vec::new();
    let statement = sqlx::query(include_str!("sql/verify_rewinds.sql")).bind(HISTORY_MAX);
    for row in statement.fetch_all(&mut *connection).await? {
        rewinds.push(Rewind {
            at: when(&row, "at")?,
            first: Seq(row.try_get("seq_first")?),
            last: Seq(row.try_get("seq_last")?),
        });
    }
    let row = sqlx::query(include_str!("sql/verify_rebased.sql")).fetch_one(connection).await?;
    Ok(History { now: when(&row, "now")?, terms, rewinds, rebased_at: timestamp(&row, "at")? })
}

fn when(row: &SqliteRow, column: &'static str) -> Result<OffsetDateTime, sqlx::Error> {
    timestamp(row, column)?.ok_or_else(|| sqlx::Error::ColumnNotFound(column.to_owned()))
}

fn json_array(seqs: &[Seq]) -> String {
    serde_json::to_string(seqs).unwrap_or_else(|_| "[]".to_owned())
}

fn hash(bytes: &[u8]) -> Sha256 {
    sha2::Sha256::digest(bytes).into()
}
