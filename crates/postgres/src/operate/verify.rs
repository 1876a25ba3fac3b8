//! What a proof of delivery asks, and the canary.

use outboxd_core::Seq;
use outboxd_core::verify::{Fingerprint, Sha256};
use outboxd_engine::{Canary, History, OutboxError, Rewind, TermSpan, Verify, Wanted};
use sqlx::Row;
use sqlx::postgres::PgRow;
use time::OffsetDateTime;
use uuid::Uuid;

use super::PostgresOperator;
use crate::schema::render;

/// Terms and rewinds that are looked at.
const HISTORY_MAX: i64 = 10_000;

impl Verify for PostgresOperator {
    async fn ends(&self) -> Result<Option<(Seq, Seq)>, OutboxError> {
        let mut call = self.session.call("look for messages").await?;
        let sql = render(include_str!("../sql/verify_ends.sql"), &self.config.schema);
        let row = call.row(sqlx::query(sql).persistent(false)).await?;
        let first: Option<i64> = call.value(row.try_get("first"))?;
        let high: i64 = call.value(row.try_get("high"))?;
        call.done();
        Ok(first.filter(|first| *first <= high).map(|first| (Seq(first), Seq(high))))
    }

    async fn inserted_at(&self, at_or_above: Seq) -> Result<Option<(Seq, OffsetDateTime)>, OutboxError> {
        let mut call = self.session.call("look for a time").await?;
        let sql = render(include_str!("../sql/verify_inserted_at.sql"), &self.config.schema);
        let rows = call.rows(sqlx::query(sql).bind(at_or_above.0)).await?;
        let found = rows.first().map(|row| Ok((Seq(row.try_get("seq")?), row.try_get("created_at")?)));
        let found = call.value(found.transpose())?;
        call.done();
        Ok(found)
    }

    async fn fingerprints(&self, wanted: &Wanted) -> Result<Vec<Fingerprint>, OutboxError> {
        let mut call = self.session.call("read what was published").await?;
        let rows = match wanted {
            Wanted::Next { above, upto, limit } => {
                let sql = render(include_str!("../sql/verify_next.sql"), &self.config.schema);
                let statement = sqlx::query(sql).bind(above.0).bind(upto.0).bind(i64::from(*limit));
                call.rows(statement).await?
            }
            Wanted::At(seqs) => {
                let sql = render(include_str!("../sql/verify_at.sql"), &self.config.schema);
                let seqs: Vec<i64> = seqs.iter().map(|seq| seq.0).collect();
                call.rows(sqlx::query(sql).bind(seqs)).await?
            }
        };
        let found = call.value(rows.iter().map(fingerprint).collect())?;
        call.done();
        Ok(found)
    }

    async fn named(&self, ids: &[Uuid], above: Seq, upto: Seq) -> Result<Vec<(Uuid, Seq)>, OutboxError> {
        let mut call = self.session.call("look for ids").await?;
        let sql = render(include_str!("../sql/verify_named.sql"), &self.config.schema);
        let rows = call.rows(sqlx::query(sql).persistent(false).bind(ids).bind(above.0).bind(upto.0)).await?;
        let pair = |row: &PgRow| Ok((row.try_get("id")?, Seq(row.try_get("seq")?)));
        let found = call.value(rows.iter().map(pair).collect())?;
        call.done();
        Ok(found)
    }

    async fn tried_again(&self, seqs: &[Seq]) -> Result<Vec<Seq>, OutboxError> {
        let mut call = self.session.call("read what was held").await?;
        let sql = render(include_str!("../sql/verify_tried.sql"), &self.config.schema);
        let seqs: Vec<i64> = seqs.iter().map(|seq| seq.0).collect();
        let rows = call.rows(sqlx::query(sql).persistent(false).bind(seqs)).await?;
        let found = call.value(rows.iter().map(|row| row.try_get("seq").map(Seq)).collect())?;
        call.done();
        Ok(found)
    }

    async fn history(&self) -> Result<History, OutboxError> {
        let mut call = self.session.call("read the history").await?;
        let schema = &self.config.schema;
        let sql = render(include_str!("../sql/verify_terms.sql"), schema);
        let rows = call.rows(sqlx::query(sql).persistent(false).bind(HISTORY_MAX)).await?;
        let mut terms: Vec<TermSpan> = call.value(rows.iter().map(term).collect())?;
        terms.reverse();
        let sql = render(include_str!("../sql/verify_rewinds.sql"), schema);
        let rows = call.rows(sqlx::query(sql).persistent(false).bind(HISTORY_MAX)).await?;
        let rewinds = call.value(rows.iter().map(rewind).collect())?;
        let sql = render(include_str!("../sql/verify_rebased.sql"), schema);
        let row = call.row(sqlx::query(sql).persistent(false)).await?;
        let rebased_at = call.value(row.try_get("at"))?;
        let now = call.value(row.try_get("now"))?;
        call.done();
        Ok(History { now, terms, rewinds, rebased_at })
    }
}

impl Canary for PostgresOperator {
    async fn emit_canary(&self, topic: &str) -> Result<Uuid, OutboxError> {
        let mut call = self.session.call("emit a canary").await?;
        let sql = render(include_str!("../sql/canary.sql"), &self.config.schema);
        let row = call.row(sqlx::query(sql).bind(topic)).await?;
        let id = call.value(row.try_get("id"))?;
        call.done();
        Ok(id)
    }
}

fn term(row: &PgRow) -> Result<TermSpan, sqlx::Error> {
    Ok(TermSpan {
        epoch: row.try_get("epoch")?,
        led_at: row.try_get("led_at")?,
        ended_at: row.try_get("ended_at")?,
    })
}

fn rewind(row: &PgRow) -> Result<Rewind, sqlx::Error> {
    Ok(Rewind {
        at: row.try_get("at")?,
        first: Seq(row.try_get("seq_first")?),
        last: Seq(row.try_get("seq_last")?),
    })
}

fn fingerprint(row: &PgRow) -> Result<Fingerprint, sqlx::Error> {
    let hash = |column: &str| -> Result<Option<Sha256>, sqlx::Error> {
        row.try_get::<Option<&[u8]>, _>(column)?
            .map(|bytes| bytes.try_into().map_err(|error| sqlx::Error::Decode(Box::new(error))))
            .transpose()
    };
    let is_edited: bool = row.try_get("is_edited")?;
    Ok(Fingerprint {
        seq: Seq(row.try_get("seq")?),
        id: row.try_get("id")?,
        topic: row.try_get("topic")?,
        created_at: row.try_get("created_at")?,
        key: hash("key_sha256")?,
        payload: hash("payload_sha256")?,
        edited: is_edited.then(|| hash("edited_sha256")).transpose()?,
    })
}
