//! The relay: stands by or leads, rides outages out, drains.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use outboxd_core::Backoff;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::config::RelayConfig;
use crate::lead::TermEnd;
use crate::observe::{Event, Observe, Side, beating};
use crate::outbox::{Outbox, OutboxError, Term, chain};
use crate::pipeline::Lasting;
use crate::publisher::Publisher;
use crate::purge::measure;
use crate::topics::Topics;

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
            topics: Topics::new(config.routes.clone()),
            suspects: BTreeSet::new(),
            uncopied: BTreeSet::new(),
            rng: StdRng::seed_from_u64(seed),
            frame: 0,
            kafka_out_since: None,
            database_out_since: None,
            page_read: Arc::default(),
            has_settled: false,
            stranded: Arc::default(),
            replay_wanted: Arc::default(),
            replay_slot: 0,
            replay_slow_to: None,
            tried: None,
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
