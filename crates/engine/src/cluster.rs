//! Is this the Kafka cluster that the outbox is published to? Asked before anything is enqueued.
//!
//! A copy of the database cannot be told from its original by looking at it: same rows, same cursor, same system identifier. It can be told
//! by whom it talks to. So the outbox remembers the Kafka cluster of its first record, and a relay that reaches another one publishes
//! nothing. It costs one question a run, answered from the client's first metadata, and one write in an outbox's life.

use std::sync::Arc;

use outboxd_core::DeliveryError;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::outbox::{Outbox, OutboxError};
use crate::pipeline::Pipeline;
use crate::publisher::Publisher;

/// What a question about the cluster brought.
#[derive(Debug)]
pub(crate) enum ClusterAnswer {
    /// Kafka has answered.
    Told(Result<Option<String>, DeliveryError>),
    /// The outbox has written it down.
    Remembered(Result<(), OutboxError>),
}

/// What this run knows of the cluster.
#[derive(Debug)]
pub(crate) struct ClusterCheck {
    /// As the outbox remembers it.
    remembered: Option<String>,
    /// Records may be enqueued.
    pub(crate) verified: bool,
    pub(crate) calls: JoinSet<ClusterAnswer>,
    /// When to ask again.
    ask_at: Instant,
    backoff: outboxd_core::Backoff,
}

impl ClusterCheck {
    pub(crate) fn new(remembered: Option<String>, backoff: outboxd_core::Backoff) -> Self {
        Self { remembered, verified: false, calls: JoinSet::new(), ask_at: Instant::now(), backoff }
    }
}

impl<O: Outbox, P: Publisher> Pipeline<'_, O, P> {
    /// Asks Kafka for its name, if it is not known and nobody is asking.
    pub(crate) fn ask_for_cluster(&mut self) {
        let check = &mut self.cluster;
        if !check.verified && check.calls.is_empty() && check.ask_at <= Instant::now() {
            let asked = self.publisher.cluster();
            check.calls.spawn(async move { ClusterAnswer::Told(asked.await) });
        }
    }

    /// Takes an answer in.
    ///
    /// # Errors
    /// [`OutboxError::Refused`] if it is another cluster than the one that the outbox is published to.
    pub(crate) fn learn_cluster(&mut self, answer: ClusterAnswer) -> Result<(), OutboxError> {
        match answer {
            ClusterAnswer::Told(Ok(Some(found))) => match &self.cluster.remembered {
                Some(known) if *known == found => self.cluster_is_verified(),
                Some(known) => return Err(other_cluster(known, &found)),
                None => {
                    let (outbox, term) = (Arc::clone(self.outbox), self.term);
                    self.cluster.calls.spawn(async move {
                        ClusterAnswer::Remembered(outbox.remember_kafka(term, &found).await)
                    });
                }
            },
            // Nothing to compare. Such a cluster cannot be told from another.
            ClusterAnswer::Told(Ok(None)) => self.cluster_is_verified(),
            ClusterAnswer::Told(Err(error)) => {
                let pause = self.cluster.backoff.next(rand::RngExt::random(&mut self.lasting.rng));
                self.cluster.ask_at = Instant::now() + pause;
                if !self.feed.is_empty() {
                    self.kafka_is_out(&error.code);
                }
            }
            ClusterAnswer::Remembered(written) => {
                written?;
                self.cluster_is_verified();
            }
        }
        Ok(())
    }

    fn cluster_is_verified(&mut self) {
        self.cluster.verified = true;
        if self.window.outstanding() == 0 {
            self.kafka_answers();
        }
    }
}

fn other_cluster(known: &str, found: &str) -> OutboxError {
    OutboxError::Refused {
        finding: format!(
            "this outbox is published to the Kafka cluster {known}, and kafka.bootstrap_servers lead to {found}: \
             the database is a copy of another one, or Kafka is not the one it was; nothing was published"
        ),
        remedy: format!(
            "let kafka.bootstrap_servers lead to {known}, or run `outboxd rebase --reason <why>` if this outbox is to be published \
             to {found} from now on"
        ),
    }
}
