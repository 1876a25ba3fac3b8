//! Everybody who is told what happened in the loop.

use std::sync::Arc;

use outboxd_engine::{Event, Observe};

use crate::metrics::Metrics;
use crate::standing::Standing;

/// Metrics, standing, and in crash tests the failpoint.
#[derive(Debug)]
pub(crate) struct Observers {
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) standing: Arc<Standing>,
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
}
