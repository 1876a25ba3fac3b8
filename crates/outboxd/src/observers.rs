//! Everybody who is told what happened in the loop.

use std::sync::Arc;

use outboxd_engine::{Attempt, Event, Follow, Observe};

use crate::metrics::Metrics;
use crate::spans::Spans;
use crate::standing::Standing;

/// Metrics, standing, spans where they are exported, and in crash tests the failpoint.
#[derive(Debug)]
pub(crate) struct Observers {
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) standing: Arc<Standing>,
    pub(crate) spans: Option<Arc<Spans>>,
    #[cfg(feature = "failpoints")]
    pub(crate) failpoint: Option<crate::failpoint::Failpoint>,
}

impl Observe for Observers {
    fn observe(&self, event: &Event<'_>) {
        self.metrics.observe(event);
        self.standing.observe(event);
        #[cfg(feature = "failpoints")]
        if let Some(failpoint) = &self.failpoint {
            failpoint.observe(event);
        }
    }

    fn attempt(&self, attempt: &Attempt<'_>) -> Option<Box<dyn Follow>> {
        self.spans.as_ref()?.attempt(attempt)
    }
}
