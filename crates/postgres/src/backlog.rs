//! What is undelivered, from the tables.

use std::collections::BTreeMap;
use std::time::Duration;

use outboxd_engine::{Backlog, OutboxError, ReplayState};
use sqlx::{Row, SqlStr};

use crate::held::WALKED_MAX;
use crate::operate::word;
use crate::outbox::PostgresOutbox;
use crate::session::Session;

/// Messages are counted exactly up to so many.
const EXACT_MAX: i64 = 10_000;

impl PostgresOutbox {
    /// A leader asks on the session for such things; a standby has only the one that it waits for the lead on.
    pub(crate) async fn measure_backlog(&self) -> Result<Backlog, OutboxError> {
        let leads = self.memory().led.is_some();
        let session = if leads { &self.rest_session } else { &self.lead_session };
        let mut call = session.call("measure backlog").await?;
        let row = call.row(sqlx::query(self.sql.backlog.clone()).bind(EXACT_MAX)).await?;
        let messages: i64 = call.value(row.try_get("messages"))?;
        let oldest_age_us: Option<i64> = call.value(row.try_get("oldest_age_us"))?;
        let scheduled: i64 = call.value(row.try_get("scheduled"))?;
        call.done();
        let held = held_by_reason(session, &self.sql.backlog_held).await?;
        let replays = open_replays(session, &self.sql.backlog_replays).await?;
        let oldest_age_us = u64::try_from(oldest_age_us.unwrap_or(0)).unwrap_or(0);
        Ok(Backlog {
            messages: u64::try_from(messages).unwrap_or(0),
            oldest_age: Duration::from_micros(oldest_age_us),
            scheduled: u64::try_from(scheduled).unwrap_or(0),
            held,
            replays,
        })
    }
}

/// How many replays are open, by state.
pub(crate) async fn open_replays(
    session: &Session,
    backlog_replays: &SqlStr,
) -> Result<Vec<(ReplayState, u64)>, OutboxError> {
    let mut call = session.call("count replays").await?;
    let rows = call.rows(sqlx::query(backlog_replays.clone())).await?;
    let mut replays = Vec::with_capacity(rows.len());
    for row in &rows {
        let state = call.value(word(row, "state", ReplayState::parse))?;
        let count: i64 = call.value(row.try_get("replays"))?;
        replays.push((state, u64::try_from(count).unwrap_or(0)));
    }
    call.done();
    Ok(replays)
}

/// How many messages are held, by state and reason, page by page: there may be millions.
pub(crate) async fn held_by_reason(
    session: &Session,
    backlog_held: &SqlStr,
) -> Result<Vec<(String, String, u64)>, OutboxError> {
    let mut held = BTreeMap::new();
    let mut from = i64::MIN;
    loop {
        let mut call = session.call("count held messages").await?;
        let rows = call.rows(sqlx::query(backlog_held.clone()).bind(from).bind(WALKED_MAX)).await?;
        let mut walked = 0;
        for row in &rows {
            let messages: i64 = call.value(row.try_get("messages"))?;
            let word = (call.value(row.try_get("state"))?, call.value(row.try_get("reason"))?);
            *held.entry(word).or_insert(0) += u64::try_from(messages).unwrap_or(0);
            from = from.max(call.value(row.try_get("last"))?);
            walked += messages;
        }
        call.done();
        if walked < WALKED_MAX {
            return Ok(held
                .into_iter()
                .map(|((state, reason), messages)| (state, reason, messages))
                .collect());
        }
    }
}
