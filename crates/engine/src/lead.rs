//! A term of leadership: taking it, keeping it, giving it up.
//!
//! One relay leads, any number stand by. Liveness is the database's business (a lock that a dead session frees, or a lease);
//! safety is the epoch and nonce that every settle names. Memory is valid only within a term: when the term ends for
//! whatever reason, everything is dropped and the next one starts from the settled cursor.

use std::sync::Arc;

use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::observe::{Event, beating};
use crate::outbox::{Outbox, OutboxError, Term, chain};
use crate::pipeline::{End, Pipeline};
use crate::publisher::Publisher;
use crate::purge;
use crate::relay::Relay;
use crate::sweep;
use crate::upkeep::{RewindReason, Rewound};
use crate::window::Duplicates;

/// How a term ended.
#[derive(Debug)]
pub(crate) enum TermEnd {
    Drained,
    Lost(OutboxError),
}

impl<O: Outbox, P: Publisher> Relay<O, P> {
    /// Leads until drained or lost.
    pub(crate) async fn serve(&mut self, term: Term, drain: &CancellationToken) -> TermEnd {
        self.lasting.begin_term();
        let observer = Arc::clone(&self.observer);
        beating(&*observer, self.publisher.renew()).await;
        let mut background = JoinSet::new();
        background.spawn(keep(Arc::clone(&self.outbox), term));
        background.spawn(purge::upkeep(
            Arc::clone(&self.outbox),
            Arc::clone(&self.observer),
            self.config.clone(),
            Arc::clone(&self.lasting.replay_wanted),
        ));
        background.spawn(sweep::laps(
            Arc::clone(&self.outbox),
            Arc::clone(&self.observer),
            self.config.clone(),
            term,
            Arc::clone(&self.lasting.stranded),
        ));
        let end = self.runs(term, &mut background, drain).await;
        background.shutdown().await;
        // What is still queued must not go out under a lead that is lost.
        beating(&*observer, self.publisher.close()).await;
        beating(&*observer, self.outbox.step_down()).await;
        self.lasting.end_term(&*observer);
        end
    }

    async fn runs(
        &mut self,
        term: Term,
        background: &mut JoinSet<OutboxError>,
        drain: &CancellationToken,
    ) -> TermEnd {
        let mut rewinds = outboxd_core::Backoff::new(self.config.backoff_min, self.config.backoff_max);
        loop {
            let start = match beating(&*self.observer, self.outbox.start(term)).await {
                Ok(start) => start,
                Err(error) => return TermEnd::Lost(error),
            };
            tracing::debug!(target: "outboxd::lead", epoch = term.epoch, high = start.cursor.high.0,
                "dispatching from the settled cursor");
            let began = Instant::now();
            let pipeline = Pipeline::new(
                &self.outbox,
                &mut self.publisher,
                &self.config,
                &self.observer,
                &mut self.lasting,
                (term, start),
            );
            let (end, again) = Box::pin(pipeline.run(background, drain)).await;
            match end {
                End::Drained => return TermEnd::Drained,
                End::Lost(error) => return TermEnd::Lost(error),
                End::Rewind { pause, renew } => {
                    self.remember_rewind(term, pause, again).await;
                    if renew {
                        let observer = Arc::clone(&self.observer);
                        beating(&*observer, self.publisher.renew()).await;
                        self.observer.observe(&Event::Reconnected { side: crate::observe::Side::Kafka });
                    }
                    if began.elapsed() > self.config.backoff_max {
                        rewinds.reset();
                    }
                    if pause {
                        let pause = rewinds.next(rand::RngExt::random(&mut self.lasting.rng));
                        tokio::select! {
                            Some(ended) = background.join_next() => {
                                return TermEnd::Lost(crate::pipeline::ended_with(ended));
                            }
                            () = self.rest(pause, drain) => {}
                        }
                    }
                }
            }
        }
    }
}

impl<O: Outbox, P: Publisher> Relay<O, P> {
    /// For people who ask later why a message is there twice; nothing depends on it.
    async fn remember_rewind(&self, term: Term, pause: bool, again: Duplicates) {
        let Some((first, last)) = again.span else { return };
        let reason = if pause { RewindReason::Outage } else { RewindReason::TriedAlone };
        let rewound = Rewound { reason, first, last, messages: again.messages };
        if let Err(error) = beating(&*self.observer, self.outbox.remember_rewind(term, &rewound)).await {
            tracing::debug!(target: "outboxd::lead", error = chain(&error), first = first.0, last = last.0,
                "the database could not be told which messages may be published twice");
        }
    }
}

/// Keeps the lead session alive. Ends only when that fails.
async fn keep<O: Outbox>(outbox: Arc<O>, term: Term) -> OutboxError {
    loop {
        tokio::time::sleep(term.keep_every).await;
        if let Err(error) = outbox.keep(term).await {
            return error;
        }
    }
}
