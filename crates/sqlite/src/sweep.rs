//! The sweep: compares what the cursor has passed with what became of it.
//!
//! What is compared is read in one transaction that locks nobody; only where the sweep stands, and what it found, is written.

use std::time::Duration;

use outboxd_core::receipts::RUN_SPAN;
use outboxd_core::sweep::{Compared, Evidence, Run};
use outboxd_core::{KeyHash, Routes, Seq};
use outboxd_engine::{OutboxError, Stranded, Swept, Term};
use sqlx::{Connection, Row, SqliteConnection};
use tokio::time::timeout;

use crate::outbox::SqliteOutbox;
use crate::row;
use crate::session::Failure;

/// What receipts prove.
enum Known {
    /// There are none.
    Nothing,
    /// Something of messages that were inserted after this time; `None`: of all.
    Since(Option<String>),
}

/// Who holds what is stranded, and under which topics.
struct Holding<'a> {
    relay: &'a str,
    routes: &'a Routes,
}

impl SqliteOutbox {
    pub(crate) async fn sweep_turn(
        &self,
        term: Term,
        rows: u32,
        routes: &Routes,
    ) -> Result<Swept, OutboxError> {
        const DOING: &str = "sweep";
        let file = self.term_state().file;
        let mut lent = self.rest_session.lend(&self.config, DOING, file.as_ref()).await?;
        let holding = Holding { relay: &self.config.relay, routes };
        let outcome = timeout(lent.deadline(), turn(lent.connection(), term, rows, &holding)).await;
        lent.finish(DOING, outcome)
    }
}

async fn turn(
    connection: &mut SqliteConnection,
    term: Term,
    rows: u32,
    holding: &Holding<'_>,
) -> Result<Swept, Failure> {
    let (compared, known) = compare(connection, term, i64::from(rows.max(1))).await?;
    // Dropped without a commit, on every error below, it rolls back.
    let mut transaction = connection.begin_with("begin immediate").await?;
    let mut stranded = Vec::new();
    if let Known::Since(since) = &known {
        for seq in &compared.unknown {
            stranded.extend(hold(&mut transaction, *seq, since.as_deref(), holding).await?);
        }
    }
    let lap_age: f64 = sqlx::query_scalar(include_str!("sql/sweep_move.sql"))
        .bind(term.epoch)
        .bind(term.nonce.to_string())
        .bind(compared.upto.0)
        .bind(compared.is_last)
        .bind(i64::try_from(stranded.len()).unwrap_or(i64::MAX))
        .fetch_optional(&mut *transaction)
        .await?
        .ok_or(OutboxError::Fenced)?;
    transaction.commit().await?;
    Ok(Swept {
        compared: compared.messages,
        stranded,
        lap_ended: compared.is_last,
        lap_age: Duration::try_from_secs_f64(lap_age).unwrap_or_default(),
    })
}

async fn compare(
    connection: &mut SqliteConnection,
    term: Term,
    rows: i64,
) -> Result<(Compared, Known), Failure> {
    let mut transaction = connection.begin().await?;
    let place = sqlx::query(include_str!("sql/sweep_place.sql"))
        .bind(term.epoch)
        .bind(term.nonce.to_string())
        .fetch_optional(&mut *transaction)
        .await?
        .ok_or(OutboxError::Fenced)?;
    let messages: Vec<i64> = sqlx::query_scalar(include_str!("sql/sweep_messages.sql"))
        .bind(place.try_get::<i64, _>("swept_to")?)
        .bind(place.try_get::<i64, _>("high")?)
        .bind(rows)
        .fetch_all(&mut *transaction)
        .await?;
    let (first, last) = (messages.first().copied(), messages.last().copied());
    let mut evidence = Evidence { messages: messages.into_iter().map(Seq).collect(), ..Evidence::default() };
    for receipt in sqlx::query(include_str!("sql/sweep_receipts.sql"))
        .bind(first)
        .bind(last)
        .bind(rows)
        .bind(RUN_SPAN)
        .bind(Evidence::out_of_order_max(rows))
        .fetch_all(&mut *transaction)
        .await?
    {
        let run = Run { first: Seq(receipt.try_get("seq_first")?), packed: receipt.try_get("receipts")? };
        match receipt.try_get("kind")? {
            0 => evidence.in_order.push(run),
            1 => evidence.out_of_order.push(run),
            _wide => evidence.wide.push(run.packed),
        }
    }
    let set_aside: Vec<i64> = sqlx::query_scalar(include_str!("sql/sweep_set_aside.sql"))
        .bind(first)
        .bind(last)
        .fetch_all(&mut *transaction)
        .await?;
    evidence.set_aside = set_aside.into_iter().map(Seq).collect();
    transaction.rollback().await?;
    let compared =
        evidence.compare(rows).map_err(|error| OutboxError::unavailable("read receipts", error))?;
    let since: Option<String> = place.try_get("receipts_since")?;
    let all: Option<bool> = place.try_get("receipts_are_all")?;
    let known = match since {
        None => Known::Nothing,
        Some(since) => Known::Since((all != Some(true)).then_some(since)),
    };
    Ok((compared, known))
}

/// Holds a message of which nothing is known; `None` if it proves nothing.
async fn hold(
    connection: &mut SqliteConnection,
    seq: Seq,
    since: Option<&str>,
    holding: &Holding<'_>,
) -> Result<Option<Stranded>, Failure> {
    let suspect = sqlx::query(include_str!("sql/sweep_suspect.sql"))
        .bind(seq.0)
        .bind(since)
        .fetch_optional(&mut *connection)
        .await?;
    let Some(suspect) = suspect else { return Ok(None) };
    let id = row::id(suspect.try_get("id")?).unwrap_or_default();
    let topic = holding.routes.destination(suspect.try_get("topic")?).topic;
    let key: Option<String> = suspect.try_get("key")?;
    let correlation_id: Option<String> = suspect.try_get("correlation_id")?;
    sqlx::query(include_str!("sql/sweep_hold.sql"))
        .bind(seq.0)
        .bind(id.to_string())
        .bind(&*topic)
        .bind(key.map(|key| KeyHash::of_parts(&topic, &key).to_i64()))
        .execute(&mut *connection)
        .await?;
    sqlx::query(include_str!("sql/held_audit.sql"))
        .bind("sweep")
        .bind(id.to_string())
        .bind(seq.0)
        .bind(&*topic)
        .bind("stranded")
        .bind(&correlation_id)
        .bind(holding.relay)
        .bind("the cursor had passed it and nobody had delivered it")
        .execute(connection)
        .await?;
    Ok(Some(Stranded { seq, id, correlation_id: correlation_id.unwrap_or_default() }))
}
