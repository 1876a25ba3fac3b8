//! The sweep: compares what the cursor has passed with what became of it.
//!
//! A turn reads one window: the next messages, and what is known of them, in one snapshot. What is left over is a suspect; only then are
//! rows of messages looked at, and judged by the cursor of that same snapshot. A message whose settle is under way is above that
//! cursor, or not visible to it, and so never a suspect. What is stranded is held in one fenced statement.

use std::time::Duration;

use outboxd_core::receipts::RUN_SPAN;
use outboxd_core::sweep::{Compared, Evidence, Run};
use outboxd_core::{KeyHash, Routes, Seq};
use outboxd_engine::{OutboxError, Stranded, Swept, Term};
use sqlx::{Row, SqlStr};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::outbox::PostgresOutbox;
use crate::session::{Call, CallError};

/// A run of messages, compared with what is known of them in the same snapshot.
#[derive(Debug)]
pub(crate) struct Window {
    /// The cursor of the snapshot: seen, pos, until.
    pub(crate) cursor: (String, Option<i64>, Option<String>),
    /// How far it reaches, and of which messages nothing is known.
    pub(crate) compared: Compared,
    /// Whether receipts tell anything, and since when.
    pub(crate) receipts: Known,
}

/// What the receipts that are left can prove.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Known {
    /// There are none.
    Nothing,
    /// Of messages that were inserted after this time.
    Since(OffsetDateTime),
    /// Everything: none was purged.
    All,
}

impl Known {
    /// The time for the statement; `None`: of all messages.
    pub(crate) fn since(self) -> Option<OffsetDateTime> {
        match self {
            Self::Since(since) => Some(since),
            Self::Nothing | Self::All => None,
        }
    }
}

impl Window {
    /// Reads the next one. `None`: the term is over.
    pub(crate) async fn read(
        call: &mut Call<'_>,
        sql: &SqlStr,
        from: Option<i64>,
        rows: u32,
        term: Option<Term>,
    ) -> Result<Option<Self>, OutboxError> {
        let limit = i64::from(rows.max(1));
        let query = sqlx::query(sql.clone())
            .bind(from)
            .bind(limit)
            .bind(term.map(|term| term.epoch))
            .bind(term.map(|term| term.nonce))
            .bind(RUN_SPAN);
        let found = call.rows(query).await?;
        let Some(row) = found.first() else { return Ok(None) };
        let cursor = (
            call.value(row.try_get("seen"))?,
            call.value(row.try_get("pos"))?,
            call.value(row.try_get("until"))?,
        );
        let seqs =
            |column| row.try_get::<Vec<i64>, _>(column).map(|seqs| seqs.into_iter().map(Seq).collect());
        let runs = |firsts, packed| -> Result<Vec<Run>, sqlx::Error> {
            let firsts: Vec<i64> = row.try_get(firsts)?;
            let packed: Vec<Vec<u8>> = row.try_get(packed)?;
            let run = |(first, packed)| Run { first: Seq(first), packed };
            Ok(firsts.into_iter().zip(packed).map(run).collect())
        };
        let evidence = Evidence {
            messages: call.value(seqs("seqs"))?,
            in_order: call.value(runs("in_order_first", "in_order"))?,
            out_of_order: call.value(runs("out_of_order_first", "out_of_order"))?,
            wide: call.value(row.try_get("wide"))?,
            set_aside: call.value(seqs("set_aside"))?,
        };
        let compared =
            evidence.compare(limit).map_err(|error| call.failed(CallError::Client(error.to_string())))?;
        let since: Option<OffsetDateTime> = call.value(row.try_get("receipts_since"))?;
        let all: Option<bool> = call.value(row.try_get("receipts_are_all"))?;
        let receipts = match (since, all) {
            (None, _) => Known::Nothing,
            (Some(_), Some(true)) => Known::All,
            (Some(since), Some(false) | None) => Known::Since(since),
        };
        Ok(Some(Self { cursor, compared, receipts }))
    }

    /// The unknown ones, as the database takes them.
    pub(crate) fn unknown(&self) -> Vec<i64> {
        self.compared.unknown.iter().map(|seq| seq.0).collect()
    }
}

impl PostgresOutbox {
    pub(crate) async fn sweep_turn(
        &self,
        term: Term,
        rows: u32,
        routes: &Routes,
    ) -> Result<Swept, OutboxError> {
        let mut call = self.rest_session.call("sweep").await?;
        let Some(window) = Window::read(&mut call, &self.sql.sweep_window, None, rows, Some(term)).await?
        else {
            call.done();
            return Err(OutboxError::Fenced);
        };
        let stranded = if window.compared.unknown.is_empty() || window.receipts == Known::Nothing {
            Some(Vec::new())
        } else {
            self.hold_stranded(&mut call, term, &window, routes).await?
        };
        let Some(stranded) = stranded else {
            call.done();
            return Err(OutboxError::Fenced);
        };
        let moved = sqlx::query(self.sql.sweep_move.clone())
            .bind(term.epoch)
            .bind(term.nonce)
            .bind(window.compared.upto.0)
            .bind(window.compared.is_last);
        let moved = call.rows(moved).await?;
        let lap_age_us: Option<i64> =
            call.value(moved.first().map(|row| row.try_get("lap_age_us")).transpose())?;
        call.done();
        let Some(lap_age_us) = lap_age_us else { return Err(OutboxError::Fenced) };
        Ok(Swept {
            compared: window.compared.messages,
            stranded,
            lap_ended: window.compared.is_last,
            lap_age: Duration::from_micros(u64::try_from(lap_age_us).unwrap_or(0)),
        })
    }

    /// Looks at the messages of which nothing is known, and holds those that are stranded. `None`: the term is over.
    async fn hold_stranded(
        &self,
        call: &mut Call<'_>,
        term: Term,
        window: &Window,
        routes: &Routes,
    ) -> Result<Option<Vec<Stranded>>, OutboxError> {
        let (seen, pos, until) = &window.cursor;
        let suspects = sqlx::query(self.sql.sweep_suspects.clone())
            .bind(window.unknown())
            .bind(seen)
            .bind(pos)
            .bind(until)
            .bind(window.receipts.since());
        let rows = call.rows(suspects).await?;
        if rows.is_empty() {
            return Ok(Some(Vec::new()));
        }
        let (mut seqs, mut topics): (Vec<i64>, Vec<String>) = (Vec::new(), Vec::new());
        let mut hashes: Vec<Option<i64>> = Vec::new();
        for row in &rows {
            let topic = routes.destination(call.value(row.try_get("topic"))?).topic;
            let key: Option<&str> = call.value(row.try_get("key"))?;
            seqs.push(call.value(row.try_get("seq"))?);
            hashes.push(key.map(|key| KeyHash::of_parts(&topic, key).to_i64()));
            topics.push(topic.to_string());
        }
        let hold = sqlx::query(self.sql.sweep_hold.clone())
            .bind(term.epoch)
            .bind(term.nonce)
            .bind(seqs)
            .bind(topics)
            .bind(hashes);
        let held = call.rows(hold).await?;
        let Some(row) = held.first() else { return Ok(None) };
        let seqs: Vec<i64> = call.value(row.try_get("seqs"))?;
        let ids: Vec<Uuid> = call.value(row.try_get("ids"))?;
        let correlation_ids: Vec<String> = call.value(row.try_get("correlation_ids"))?;
        let stranded = seqs.into_iter().zip(ids).zip(correlation_ids);
        Ok(Some(
            stranded
                .map(|((seq, id), correlation_id)| Stranded { seq: Seq(seq), id, correlation_id })
                .collect(),
        ))
    }
}
