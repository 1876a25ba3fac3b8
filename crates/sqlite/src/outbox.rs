//! [`SqliteOutbox`]: the port, method by method; each lives in the file of its stage.

use std::sync::{Mutex, PoisonError};

use outboxd_core::{Cursor, Routes};
use outboxd_engine::{
    Backlog, DurabilityMark, HeldSignal, Outbox, OutboxError, PageLimit, PurgeLimit, Purged, ReadPage,
    Release, ReleaseQuery, ReplayChunk, ReplayProgress, ReplayQuery, ReplayState, Replays, Rewound,
    Settlement, Start, Swept, Term, Upkeep,
};
use uuid::Uuid;

use crate::barrier::Barrier;
use crate::config::SqliteConfig;
use crate::file::DatabaseFile;
use crate::session::Session;

/// An outbox in a SQLite file.
#[derive(Debug)]
pub struct SqliteOutbox {
    pub(crate) config: SqliteConfig,
    /// Lead, start, keep, settle: everything that names the term.
    pub(crate) lead_session: Session,
    /// Pages.
    pub(crate) read_session: Session,
    /// Held messages, backlog, purge.
    pub(crate) rest_session: Session,
    pub(crate) barrier: Barrier,
    term: Mutex<TermState>,
}

/// What this process believes about its term.
#[derive(Clone, Debug, Default)]
pub(crate) struct TermState {
    /// Set before the lead is taken, so that a call that was given up half-way can be undone.
    pub(crate) nonce: Option<Uuid>,
    /// The file that the term began with.
    pub(crate) file: Option<DatabaseFile>,
}

impl SqliteOutbox {
    /// An outbox in the file of the configuration. Nothing is opened yet.
    #[must_use]
    pub fn new(config: SqliteConfig) -> Self {
        Self {
            config,
            lead_session: Session::default(),
            read_session: Session::default(),
            rest_session: Session::default(),
            barrier: Barrier::default(),
            term: Mutex::default(),
        }
    }

    pub(crate) fn term_state(&self) -> TermState {
        self.term.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set_term_state(&self, state: TermState) {
        *self.term.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }
}

impl Outbox for SqliteOutbox {
    async fn lead(&self) -> Result<Option<Term>, OutboxError> {
        self.take_lead().await
    }

    async fn start(&self, term: Term) -> Result<Start, OutboxError> {
        self.read_start(term).await
    }

    async fn keep(&self, term: Term) -> Result<(), OutboxError> {
        self.renew_lease(term).await
    }

    async fn read(&self, from: &Cursor, limit: PageLimit) -> Result<ReadPage, OutboxError> {
        self.read_page(from, limit).await
    }

    async fn durable(&self, mark: DurabilityMark) -> Result<(), OutboxError> {
        self.sync_up_to(mark).await
    }

    async fn settle(&self, settlement: Settlement) -> Result<(), OutboxError> {
        self.store_settlement(settlement).await
    }

    async fn held(&self, topics_held: &[String]) -> Result<HeldSignal, OutboxError> {
        self.look_at_held(topics_held).await
    }

    async fn due(&self, query: &ReleaseQuery, actions: i64) -> Result<Release, OutboxError> {
        self.read_due(query, actions).await
    }

    async fn remember_kafka(&self, term: Term, cluster: &str) -> Result<(), OutboxError> {
        self.remember_kafka_cluster(term, cluster).await
    }

    async fn step_down(&self) {
        self.give_back_lead().await;
    }
}

impl Replays for SqliteOutbox {
    async fn replay_chunk(&self, query: &ReplayQuery) -> Result<Option<ReplayChunk>, OutboxError> {
        self.read_replay(query).await
    }

    async fn replay_progress(&self, progress: &ReplayProgress) -> Result<Option<ReplayState>, OutboxError> {
        self.write_replay(progress).await
    }
}

impl Upkeep for SqliteOutbox {
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
