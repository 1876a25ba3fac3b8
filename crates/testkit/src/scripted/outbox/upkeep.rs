//! Upkeep of the outbox in memory.

use std::collections::BTreeMap;
use std::time::Duration;

use outboxd_core::{Hold, HoldReason, HoldState, KeyHash, Message, Routes, Seq};
use outboxd_engine::{
    Backlog, OutboxError, PurgeLimit, Purged, ReplayState, Rewound, Stranded, Swept, Term, Upkeep,
};
use tokio::time::Instant;

use super::{HeldRow, MemoryOutbox, Row};

impl Upkeep for MemoryOutbox {
    async fn backlog(&self) -> Result<Backlog, OutboxError> {
        let state = self.table.state();
        state.alive("measure the backlog")?;
        let now = state.now();
        let undispatched = || state.rows.values().filter(|row| !state.visible_in_cursor(row));
        let held = state.held.keys().filter_map(|seq| state.rows.get(seq));
        let scheduled = state.scheduled.keys().filter_map(|seq| state.rows.get(seq));
        let oldest = undispatched().chain(held).chain(scheduled.clone()).map(|row| row.due_at).min();
        let mut by_reason: BTreeMap<(String, String), u64> = BTreeMap::new();
        for hold in state.held.values().map(|row| &row.hold) {
            *by_reason.entry((hold.state.as_str().into(), hold.reason.as_str().into())).or_default() += 1;
        }
        Ok(Backlog {
            messages: undispatched().count() as u64,
            oldest_age: oldest.map_or(Duration::ZERO, |at| now.saturating_duration_since(at)),
            scheduled: scheduled.filter(|row| row.due_at > now).count() as u64,
            held: by_reason.into_iter().map(|((state, reason), count)| (state, reason, count)).collect(),
            replays: ReplayState::ALL
                .into_iter()
                .filter(|of| of.is_open())
                .map(|of| (of, state.replays.iter().filter(|replay| replay.state == of).count() as u64))
                .filter(|(_, replays)| *replays > 0)
                .collect(),
        })
    }

    async fn purge(&self, limit: PurgeLimit) -> Result<Purged, OutboxError> {
        let mut state = self.table.state();
        state.alive("purge")?;
        let now = state.now();
        let rows_max = usize::try_from(limit.rows).unwrap_or(usize::MAX);
        let goes = |row: &&Row| {
            state.visible_in_cursor(row)
                && !state.held.contains_key(&row.message.seq)
                && !state.scheduled.contains_key(&row.message.seq)
                && now.saturating_duration_since(row.due_at) >= limit.keep_messages
        };
        let messages: Vec<Seq> =
            state.rows.values().filter(goes).take(rows_max).map(|row| row.message.seq).collect();
        let old = |at: &Instant| now.saturating_duration_since(*at) >= limit.keep_receipts;
        let receipts: Vec<Seq> = state
            .receipts
            .iter()
            .filter(|(_, (_, at))| old(at))
            .take(rows_max)
            .map(|(seq, _)| *seq)
            .collect();
        for seq in &messages {
            state.rows.remove(seq);
        }
        for seq in &receipts {
            state.receipts.remove(seq);
        }
        if !receipts.is_empty() {
            state.receipts_since = now.checked_sub(limit.keep_receipts);
        }
        Ok(Purged {
            messages: messages.len() as u64,
            receipts: receipts.len() as u64,
            more: messages.len() == rows_max || receipts.len() == rows_max,
        })
    }

    async fn sweep(&self, term: Term, rows: u32, routes: &Routes) -> Result<Swept, OutboxError> {
        let mut state = self.table.state();
        state.alive("sweep")?;
        if state.term != Some((term.epoch, term.nonce)) {
            return Err(OutboxError::Fenced);
        }
        let now = state.now();
        let window: Vec<Seq> = state
            .rows
            .range(Seq(state.swept_to.0 + 1)..)
            .take_while(|(seq, _)| **seq <= state.cursor.high)
            .take(usize::try_from(rows).unwrap_or(usize::MAX))
            .map(|(seq, _)| *seq)
            .collect();
        let is_stranded = |seq: &Seq| {
            let row = &state.rows[seq];
            !state.receipts.is_empty()
                && state.visible_in_cursor(row)
                && !state.receipts.contains_key(seq)
                && !state.held.contains_key(seq)
                && !state.scheduled.contains_key(seq)
                && !state.discarded.contains(seq)
                && !state.cancelled.contains(seq)
                && state.receipts_since.is_none_or(|since| row.due_at > since)
        };
        let at_kafka = |seq: &Seq| {
            let message = state.rows[seq].message.clone();
            Message { topic: routes.destination(&message.topic).topic.to_string(), ..message }
        };
        let found: Vec<Message> = window.iter().filter(|seq| is_stranded(seq)).map(at_kafka).collect();
        for message in &found {
            let hold = Hold {
                seq: message.seq,
                topic: message.topic.clone(),
                key_hash: KeyHash::of(message),
                state: HoldState::Retry,
                reason: HoldReason::Stranded,
                error: None,
                attempts: 0,
                dead_letter: None,
                due_in: Duration::ZERO,
            };
            state.held.insert(message.seq, HeldRow { hold, due_at: now });
            state.actions += 1;
        }
        let lap_ended = window.len() < usize::try_from(rows).unwrap_or(usize::MAX);
        state.swept_to = if lap_ended { Seq(0) } else { window.last().copied().unwrap_or_default() };
        let lap_age = now.saturating_duration_since(state.lap_ended_at);
        if lap_ended {
            state.lap_ended_at = now;
        }
        Ok(Swept {
            compared: window.len() as u64,
            stranded: found
                .iter()
                .map(|message| Stranded {
                    seq: message.seq,
                    id: message.id,
                    correlation_id: message.correlation_id.clone(),
                })
                .collect(),
            lap_ended,
            lap_age: if lap_ended { Duration::ZERO } else { lap_age },
        })
    }

    async fn remember_rewind(&self, _term: Term, rewound: &Rewound) -> Result<(), OutboxError> {
        let mut state = self.table.state();
        state.alive("remember what may be published twice")?;
        state.rewinds.push(*rewound);
        Ok(())
    }
}
