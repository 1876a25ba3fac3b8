//! The relay: stands by or leads, rides outages out, drains.

use std::collections::BTreeSet;
use std::fmt::{self, Write as _};
use std::sync::Arc;
use std::time::Duration;

use outboxd_core::Backoff;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::lead::{TermEnd, measure};
use crate::observe::{Event, Observe, Side};
use crate::outbox::{Outbox, OutboxError, PageLimit, PurgeLimit, Term};
use crate::pipeline::Lasting;
use crate::publisher::Publisher;
use crate::topics::Topics;

/// Between two heartbeats of a relay that waits.
const HEARTBEAT: Duration = Duration::from_millis(500);

/// The loop's settings. Times are durations, sizes are counts or bytes as named.
#[derive(Clone, Debug)]
pub struct RelayConfig {
    /// How much a page may hold.
    pub page: PageLimit,
    /// Messages between read and settled; at least a page.
    pub in_flight_messages: usize,
    /// Bytes between read and settled; at least a page.
    pub in_flight_bytes: usize,
    /// Pause after a page that was not full.
    pub poll_min: Duration,
    /// Longest pause while the outbox is quiet.
    pub poll_max: Duration,
    /// Between the beginnings of two settles.
    pub settle_every: Duration,
    /// Attempts after which a message is parked.
    pub attempts_max: u32,
    /// No delivery report for so long, with records in flight, is an outage.
    pub outage_after: Duration,
    /// Shortest back-off.
    pub backoff_min: Duration,
    /// Longest back-off.
    pub backoff_max: Duration,
    /// How often a standby tries to take the lead.
    pub standby_poll: Duration,
    /// How often held messages are looked at, while there are any.
    pub held_every: Duration,
    /// How often the backlog is measured.
    pub backlog_every: Duration,
    /// How often purge looks for work.
    pub purge_every: Duration,
    /// What purge may delete.
    pub purge: PurgeLimit,
    /// How long a drain may take.
    pub grace: Duration,
    /// Whether log lines about a message show its key beside the hash.
    pub log_keys: bool,
}

impl Default for RelayConfig {
    fn default() -> Self {
        const DAY: Duration = Duration::from_secs(24 * 60 * 60);
        Self {
            page: PageLimit { messages: 2_000, bytes: 4 << 20 },
            in_flight_messages: 16_000,
            in_flight_bytes: 32 << 20,
            poll_min: Duration::from_millis(1),
            poll_max: Duration::from_millis(20),
            settle_every: Duration::from_millis(25),
            attempts_max: 10,
            outage_after: Duration::from_secs(30),
            backoff_min: Duration::from_millis(100),
            backoff_max: Duration::from_secs(30),
            standby_poll: Duration::from_millis(250),
            held_every: Duration::from_millis(250),
            backlog_every: Duration::from_secs(2),
            purge_every: Duration::from_secs(60),
            purge: PurgeLimit { keep_messages: 7 * DAY, keep_receipts: 30 * DAY, rows: 1_000 },
            grace: Duration::from_secs(25),
            log_keys: false,
        }
    }
}

/// Why the relay gave up. It never does for an outage.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// The outbox cannot be served until somebody acts.
    #[error("serve the outbox")]
    Refused(#[source] OutboxError),
}

/// The transactional outbox relay.
pub struct Relay<O: Outbox, P: Publisher> {
    pub(crate) outbox: Arc<O>,
    pub(crate) publisher: P,
    pub(crate) config: RelayConfig,
    pub(crate) observer: Arc<dyn Observe>,
    pub(crate) lasting: Lasting,
}

impl<O: Outbox, P: Publisher> fmt::Debug for Relay<O, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relay").field("config", &self.config).finish_non_exhaustive()
    }
}

impl<O: Outbox, P: Publisher> Relay<O, P> {
    /// A relay between the two. `seed` feeds every random choice (jitter), so that a run can be repeated.
    pub fn new(outbox: O, publisher: P, config: RelayConfig, observer: Arc<dyn Observe>, seed: u64) -> Self {
        let lasting = Lasting {
            topics: Topics::default(),
            suspects: BTreeSet::new(),
            rng: StdRng::seed_from_u64(seed),
            frame: 0,
            kafka_out_since: None,
            database_out_since: None,
            page_read: Arc::default(),
            has_settled: false,
        };
        Self { outbox: Arc::new(outbox), publisher, config, observer, lasting }
    }

    /// Relays until `drain` is cancelled, then comes to rest within the grace period. Outages of either side are ridden
    /// out with back-off.
    ///
    /// # Errors
    /// [`RelayError::Refused`] if the outbox says that an operator must act first.
    pub async fn run(mut self, drain: CancellationToken) -> Result<(), RelayError> {
        let mut backoff = Backoff::new(self.config.backoff_min, self.config.backoff_max);
        let mut standing_by: Option<Instant> = None;
        while !drain.is_cancelled() {
            let error = match self.take_lead(&drain).await {
                Some(Ok(None)) => {
                    self.lasting.database_answers(&*self.observer);
                    backoff.reset();
                    self.stand_by(&mut standing_by, &drain).await;
                    continue;
                }
                Some(Ok(Some(term))) => {
                    standing_by = None;
                    self.observer.observe(&Event::Leading { epoch: term.epoch });
                    tracing::info!(target: "outboxd::lead", epoch = term.epoch, "leading");
                    let began = Instant::now();
                    let end = self.serve(term, &drain).await;
                    // A lead that comes to nothing is no progress, however easily it was taken.
                    if self.lasting.has_settled || began.elapsed() > self.config.backoff_max {
                        backoff.reset();
                    }
                    let orderly = matches!(end, TermEnd::Drained);
                    self.observer.observe(&Event::LeadLost { orderly });
                    match end {
                        TermEnd::Drained => {
                            tracing::info!(target: "outboxd::drain", "drained");
                            return Ok(());
                        }
                        TermEnd::Lost(error) => error,
                    }
                }
                Some(Err(error)) => error,
                None => break,
            };
            match error {
                OutboxError::Refused { .. } => {
                    self.outbox.step_down().await;
                    return Err(RelayError::Refused(error));
                }
                OutboxError::Fenced => {
                    self.observer.observe(&Event::SettleRefused);
                    tracing::warn!(target: "outboxd::lead", "another relay has taken the lead; standing by");
                }
                OutboxError::Unavailable { .. } => {
                    let pause = backoff.next(rand::RngExt::random(&mut self.lasting.rng));
                    self.database_is_out(&error, pause);
                    self.rest(pause, &drain).await;
                }
            }
        }
        self.outbox.step_down().await;
        Ok(())
    }

    /// Tries to lead while the heart beats; `None` if drained meanwhile.
    async fn take_lead(&self, drain: &CancellationToken) -> Option<Result<Option<Term>, OutboxError>> {
        // Dropping the attempt costs its session and nothing else, by the port's contract.
        tokio::select! {
            biased;
            () = drain.cancelled() => None,
            led = beating(&*self.observer, self.outbox.lead()) => Some(led),
        }
    }

    async fn stand_by(&self, measured: &mut Option<Instant>, drain: &CancellationToken) {
        if measured.is_none() {
            tracing::info!(target: "outboxd::lead", "standing by: another relay leads");
        }
        self.observer.observe(&Event::StandingBy);
        if measured.is_none_or(|at| at.elapsed() >= self.config.backlog_every) {
            measure(&*self.outbox, &*self.observer).await;
            *measured = Some(Instant::now());
        }
        self.rest(self.config.standby_poll, drain).await;
    }

    /// Waits, with heartbeats, and wakes early for a drain.
    pub(crate) async fn rest(&self, pause: Duration, drain: &CancellationToken) {
        tokio::select! {
            biased;
            () = drain.cancelled() => {}
            () = beating(&*self.observer, tokio::time::sleep(pause)) => {}
        }
    }

    fn database_is_out(&mut self, error: &OutboxError, pause: Duration) {
        let waits_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
        if self.lasting.database_out_since.is_none() {
            self.lasting.database_out_since = Some(Instant::now());
            self.observer.observe(&Event::OutageBegan { side: Side::Database });
            tracing::warn!(target: "outboxd::lead", error = chain(error), waits_ms,
                "the database is not available; waiting, nothing is lost");
        } else {
            tracing::info!(target: "outboxd::lead", error = chain(error), waits_ms, "the database is still not available");
        }
    }
}

/// Does it while the heart beats: whoever asks whether the relay is alive must not take a slow server for a dead relay.
pub(crate) async fn beating<T>(observer: &dyn Observe, work: impl Future<Output = T>) -> T {
    let mut beat = tokio::time::interval(HEARTBEAT);
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            biased;
            done = &mut work => return done,
            _ = beat.tick() => observer.observe(&Event::Heartbeat),
        }
    }
}

/// An error and its causes on one line: "settle page: connect to database: connection refused".
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        // Writing to a String cannot fail.
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    text
}
