//! Advances the cursor over the prefix in which every message has its verdict: one fenced write at a time, off the latency
//! path, coalesced to some tens a second.

use std::sync::Arc;
use std::time::Duration;

use outboxd_core::Cursor;
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;

use crate::observe::Event;
use crate::outbox::{Outbox, OutboxError, Settlement, Trial};
use crate::pipeline::Pipeline;
use crate::publisher::Publisher;

/// A settle that is written or failed.
#[derive(Debug)]
pub(crate) struct Written {
    after: Cursor,
    dispatched: u64,
    holds: usize,
    released: usize,
    note: Option<Trial>,
    /// It said something of messages.
    is_page: bool,
    took: Duration,
}

/// The settle under way.
#[derive(Debug)]
pub(crate) struct Settler {
    pub(crate) task: JoinSet<Result<Written, OutboxError>>,
    began_at: Instant,
}

impl Default for Settler {
    fn default() -> Self {
        Self { task: JoinSet::new(), began_at: Instant::now() }
    }
}

impl<O: Outbox, P: Publisher> Pipeline<'_, O, P> {
    /// When the next settle may begin; `None` if there is nothing to settle or one is under way.
    pub(crate) fn settle_at(&mut self) -> Option<Instant> {
        if !self.settle.task.is_empty() {
            return None;
        }
        if self.caution.is_note_due() {
            return Some(self.settle.began_at);
        }
        if !self.window.has_ready() {
            return None;
        }
        // In a hurry: a moment that has passed, however late the caller asks. "Now" would never come for who compares with
        // a "now" of before.
        let hurried = self.quiet.is_some() || self.held.pages_wait();
        Some(if hurried { self.settle.began_at } else { self.settle.began_at + self.config.settle_every })
    }

    pub(crate) fn start_settle(&mut self) {
        let now = Instant::now();
        if self.settle_at().is_none_or(|at| at > now) {
            return;
        }
        let batch = self.window.collect(now);
        let moves = batch.after.is_some();
        let after = batch.after.unwrap_or_else(|| self.settled.clone());
        let (dispatched, released) = (batch.dispatched, batch.released.len());
        let holds = batch.holds.len() + batch.scheduled.len();
        // A settle that only notes an attempt is none that anybody counts.
        let is_page = moves || dispatched > 0 || holds > 0;
        let note = self.caution.note();
        if let Some(trial) = self.caution.trial() {
            self.lasting.tried = Some(trial.seq);
        }
        let settlement = Settlement {
            term: self.term,
            before: self.settled.clone(),
            after: after.clone(),
            receipts: batch.receipts,
            receipts_out_of_order: batch.receipts_out_of_order,
            holds: batch.holds,
            released: batch.released,
            trial: note,
            proves_term: self.caution.proves_term(),
            scheduled: batch.scheduled,
        };
        self.settle.began_at = now;
        if is_page {
            self.observer.observe(&Event::Settling);
        }
        let outbox = Arc::clone(self.outbox);
        self.settle.task.spawn(async move {
            outbox.settle(settlement).await?;
            Ok(Written { after, dispatched, holds, released, note, is_page, took: now.elapsed() })
        });
    }

    pub(crate) fn settle_written(
        &mut self,
        written: Result<Result<Written, OutboxError>, JoinError>,
    ) -> Result<(), OutboxError> {
        let written = written.unwrap_or_else(|error| Err(OutboxError::unavailable("settle page", error)))?;
        self.caution.noted(written.note);
        if !written.is_page {
            return Ok(());
        }
        self.observer.observe(&Event::Settled { messages: written.dispatched, took: written.took });
        tracing::debug!(target: "outboxd::settle", dispatched = written.dispatched, held = written.holds,
            released = written.released, high = written.after.high.0, "settled");
        self.settled = written.after;
        self.lasting.has_settled = true;
        self.window.settled();
        self.window.holds_settled(written.holds);
        if written.released > 0 {
            // Followers may be unblocked now.
            self.held_at = Instant::now();
        }
        Ok(())
    }
}
