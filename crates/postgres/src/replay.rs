//! Replays, as the leader works on them.
//!
//! Everything is asked on the session for such things: what fails there costs the lead nothing. Neither memory nor the incarnation of the
//! server matters here: progress is compared and swapped, and what was dispatched once may be published again at any time.

use outboxd_core::{Message, Seq, receipts};
use outboxd_engine::{
    OutboxError, ReplayChunk, ReplayProgress, ReplayQuery, ReplayState, ReplayStop, ReplayTask, ReplayTurn,
};
use sqlx::Row;
use sqlx::postgres::PgRow;

use crate::operate::word;
use crate::outbox::PostgresOutbox;
use crate::read::{clock, message};
use crate::session::CallError;

/// Columns of the answer before those of the message.
const FRAME_COLUMNS: usize = 10;

impl PostgresOutbox {
    pub(crate) async fn read_replay(&self, query: &ReplayQuery) -> Result<Option<ReplayChunk>, OutboxError> {
        let (replay, from) = query.going_on.map(|(replay, from)| (replay, from.0)).unzip();
        let mut call = self.rest_session.call("read the messages of a replay").await?;
        let statement = sqlx::query(self.sql.replay_chunk.clone())
            .bind(query.term.epoch)
            .bind(query.term.nonce)
            .bind(replay)
            .bind(from)
            .bind(i64::from(query.rows.max(1)))
            .bind(i64::from(query.limit.messages.max(1)))
            .bind(i64::try_from(query.limit.bytes.max(1)).unwrap_or(i64::MAX));
        let rows = call.rows(statement).await?;
        let Some(first) = rows.first() else {
            call.done();
            return Err(OutboxError::Fenced);
        };
        let Some((task, reached, clock_us)) = call.value(task(first))? else {
            call.done();
            return Ok(None);
        };
        let Some(clock) = clock(clock_us) else {
            return Err(call.failed(CallError::Client("the clock is out of range".into())));
        };
        let mut messages: Vec<Message> = Vec::with_capacity(rows.len());
        for row in &rows {
            if call.value(row.try_get::<Option<i64>, _>("seq"))?.is_some() {
                messages.push(call.value(message(row, FRAME_COLUMNS, clock))?);
            }
        }
        call.done();
        Ok(Some(ReplayChunk { task, messages, reached }))
    }

    pub(crate) async fn write_replay(
        &self,
        progress: &ReplayProgress,
    ) -> Result<Option<ReplayState>, OutboxError> {
        let (mut first, mut last, mut messages, mut packed) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for mut run in receipts::runs(progress.receipts.clone()) {
            packed.push(receipts::encode(&mut run));
            if let [one, ..] = run.as_slice() {
                first.push(one.seq.0);
                last.push(run.last().unwrap_or(one).seq.0);
                messages.push(i32::try_from(run.len()).unwrap_or(i32::MAX));
            }
        }
        let (state, stop) = match &progress.turn {
            ReplayTurn::GoesOn => (ReplayState::Running, None),
            ReplayTurn::Done => (ReplayState::Done, None),
            ReplayTurn::Stopped(stop) => (ReplayState::Stopped, Some(stop)),
        };
        let mut call = self.rest_session.call("write down how far a replay is").await?;
        let statement = sqlx::query(self.sql.replay_progress.clone())
            .bind(progress.term.epoch)
            .bind(progress.term.nonce)
            .bind(progress.replay)
            .bind(progress.before.0)
            .bind(progress.after.0)
            .bind(first)
            .bind(last)
            .bind(messages)
            .bind(packed)
            .bind(state.as_str())
            .bind(stop.map(|ReplayStop { error, .. }| error.as_str()))
            .bind(stop.map(|ReplayStop { seq, .. }| seq.0))
            .bind(stop.map(|ReplayStop { id, .. }| *id));
        let row = call.row(statement).await?;
        let has_term: bool = call.value(row.try_get("has_term"))?;
        let stored: Option<&str> = call.value(row.try_get("state"))?;
        let state = match stored {
            Some(_) => Some(call.value(word(&row, "state", ReplayState::parse))?),
            None => None,
        };
        call.done();
        if has_term { Ok(state) } else { Err(OutboxError::Fenced) }
    }
}

/// The replay, how far the answer reaches, and the database's clock; `None`: there is none.
fn task(row: &PgRow) -> Result<Option<(ReplayTask, Seq, i64)>, sqlx::Error> {
    let Some(replay) = row.try_get("replay")? else { return Ok(None) };
    let rate: Option<i32> = row.try_get("rate")?;
    let total: i64 = row.try_get("total")?;
    let task = ReplayTask {
        replay,
        who: row.try_get("who")?,
        to_topic: row.try_get("to_topic")?,
        rate: rate.and_then(|rate| u32::try_from(rate).ok()),
        total: u64::try_from(total).unwrap_or(0),
        pos: Seq(row.try_get("replay_pos")?),
        last: Seq(row.try_get("seq_last")?),
        in_vain: u32::try_from(row.try_get::<i32, _>("in_vain")?).unwrap_or(0),
    };
    Ok(Some((task, Seq(row.try_get("reached")?), row.try_get("clock_us")?)))
}
