//! [`PostgresOutbox`]: the port, method by method. Each method lives in the file of its stage.
//!
//! A leader has four sessions, one for each thing that must not wait for another; a standby has the lead session alone.
//! What is kept between calls is what a term has learnt, and it is dropped with the term.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use outboxd_core::{Cursor, Routes, Seq};
use outboxd_engine::{
    Backlog, DurabilityMark, HeldSignal, Outbox, OutboxError, PageLimit, PurgeLimit, Purged, ReadPage,
    Release, ReleaseQuery, ReplayChunk, ReplayProgress, ReplayQuery, ReplayState, Replays, Rewound,
    Settlement, Start, Swept, Term, Upkeep,
};

use crate::held::HeldMemory;
use crate::session::{CallError, Incarnation, PostgresConfig, Purpose, Session};
use crate::sql::Statements;

/// Heights whose bound is remembered; more than pages can be in flight.
const BOUNDS_MAX: usize = 20_000;

/// The outbox in a PostgreSQL database.
#[derive(Debug)]
pub struct PostgresOutbox {
    pub(crate) config: PostgresConfig,
    pub(crate) sql: Statements,
    pub(crate) lead_session: Session,
    pub(crate) read_session: Session,
    pub(crate) durable_session: Session,
    pub(crate) rest_session: Session,
    memory: Mutex<Memory>,
}

/// What is known within a term.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    /// The incarnation of the server that the lead was taken on, and the backend that holds the lock.
    pub(crate) led: Option<(Incarnation, i32)>,
    pub(crate) term: Option<Term>,
    pub(crate) bounds: Bounds,
    pub(crate) held: HeldMemory,
    /// Where the purge goes on.
    pub(crate) purged_to: i64,
}

/// For a height: no message at or below it has an xid at or above the bound. Whatever drew its `seq` before `high` was drawn
/// had its xid before that, so the next xid that the server will give out, asked after `high` was seen, is such a bound, and the
/// bound of a greater height is one too.
#[derive(Debug, Default)]
pub(crate) struct Bounds(VecDeque<(Seq, u64)>);

impl Bounds {
    pub(crate) fn learn(&mut self, high: Seq, bound: u64) {
        // An older bound of the same height is the narrower one.
        if self.0.back().is_some_and(|(known, _)| *known >= high) {
            return;
        }
        if self.0.len() == BOUNDS_MAX {
            self.0.pop_front();
        }
        self.0.push_back((high, bound));
    }

    pub(crate) fn of(&self, high: Seq) -> Option<u64> {
        let at = self.0.partition_point(|(known, _)| *known < high);
        self.0.get(at).map(|(_, bound)| *bound)
    }
}

impl PostgresOutbox {
    /// An outbox that connects when it is first asked something.
    #[must_use]
    pub fn new(config: PostgresConfig) -> Self {
        let sql = Statements::new(&config.schema);
        Self::with_statements(config, sql)
    }

    /// As [`PostgresOutbox::new`] with other statements, so that tests can break one.
    #[doc(hidden)]
    #[must_use]
    pub fn with_statements(config: PostgresConfig, sql: Statements) -> Self {
        config.warn_of_unverified_tls();
        Self {
            sql,
            lead_session: Session::new(&config, Purpose::Lead),
            read_session: Session::new(&config, Purpose::Read),
            durable_session: Session::new(&config, Purpose::Durable),
            rest_session: Session::new(&config, Purpose::Rest),
            memory: Mutex::default(),
            config,
        }
    }

    /// What the term has learnt. Held for a few instructions, never across an await.
    pub(crate) fn memory(&self) -> MutexGuard<'_, Memory> {
        // Nobody can leave it half-changed: each change is one assignment.
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A session that was opened in this term must belong to the server that the lead was taken on.
    pub(crate) fn same_incarnation(
        &self,
        incarnation: Incarnation,
        doing: &'static str,
    ) -> Result<(), OutboxError> {
        match self.memory().led {
            Some((led, _)) if led == incarnation => Ok(()),
            Some(_) => Err(CallError::OtherIncarnation.during(doing)),
            None => Err(CallError::LeadLost.during(doing)),
        }
    }

    async fn close(&self) {
        *self.memory() = Memory::default();
        tokio::join!(
            self.lead_session.close(),
            self.read_session.close(),
            self.durable_session.close(),
            self.rest_session.close(),
        );
    }
}

impl Outbox for PostgresOutbox {
    async fn lead(&self) -> Result<Option<Term>, OutboxError> {
        let led = self.take_lead().await;
        if led.is_err() {
            self.close().await;
        }
        led
    }

    async fn start(&self, term: Term) -> Result<Start, OutboxError> {
        self.start_term(term).await
    }

    async fn keep(&self, term: Term) -> Result<(), OutboxError> {
        self.keep_lead(term).await
    }

    async fn read(&self, from: &Cursor, limit: PageLimit) -> Result<ReadPage, OutboxError> {
        self.read_page(from, limit).await
    }

    async fn durable(&self, mark: DurabilityMark) -> Result<(), OutboxError> {
        self.await_durable(mark).await
    }

    async fn settle(&self, settlement: Settlement) -> Result<(), OutboxError> {
        self.settle_page(settlement).await
    }

    async fn held(&self, topics_held: &[String]) -> Result<HeldSignal, OutboxError> {
        self.held_signal(topics_held).await
    }

    async fn due(&self, query: &ReleaseQuery, actions: i64) -> Result<Release, OutboxError> {
        self.held_due(query, actions).await
    }

    async fn remember_kafka(&self, term: Term, cluster: &str) -> Result<(), OutboxError> {
        self.remember_kafka_cluster(term, cluster).await
    }

    async fn step_down(&self) {
        self.end_term().await;
        self.close().await;
    }
}

impl Replays for PostgresOutbox {
    async fn replay_chunk(&self, query: &ReplayQuery) -> Result<Option<ReplayChunk>, OutboxError> {
        self.read_replay(query).await
    }

    async fn replay_progress(&self, progress: &ReplayProgress) -> Result<Option<ReplayState>, OutboxError> {
        self.write_replay(progress).await
    }
}

impl Upkeep for PostgresOutbox {
    async fn backlog(&self) -> Result<Backlog, OutboxError> {
        self.measure_backlog().await
    }

    async fn purge(&self, limit: PurgeLimit) -> Result<Purged, OutboxError> {
        self.purge_step(limit).await
    }

    async fn sweep(&self, term: Term, rows: u32, routes: &Routes) -> Result<Swept, OutboxError> {
        self.sweep_turn(term, rows, routes).await
    }

    async fn remember_rewind(&self, term: Term, rewound: &Rewound) -> Result<(), OutboxError> {
        self.store_rewind(term, rewound).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_is_never_lower_than_the_one_learnt_for_that_height_or_above() {
        let mut bounds = Bounds::default();
        assert_eq!(bounds.of(Seq(5)), None);
        bounds.learn(Seq(10), 100);
        bounds.learn(Seq(10), 120);
        bounds.learn(Seq(20), 200);
        assert_eq!(bounds.of(Seq(5)), Some(100));
        assert_eq!(bounds.of(Seq(10)), Some(100));
        assert_eq!(bounds.of(Seq(11)), Some(200));
        assert_eq!(bounds.of(Seq(21)), None);
    }

    #[test]
    fn forgetting_old_heights_only_widens_their_bound() {
        let mut bounds = Bounds::default();
        for height in (0..).take(BOUNDS_MAX + 1) {
            bounds.learn(Seq(height), 1_000 + height.unsigned_abs());
        }
        assert_eq!(bounds.0.len(), BOUNDS_MAX);
        assert_eq!(bounds.of(Seq(0)), Some(1_001));
    }
}
