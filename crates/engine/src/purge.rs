//! Upkeep beside the path: measures what is undelivered, and deletes what is dispatched and old in small steps.
//!
//! Purge never deletes anything undelivered or held; the outbox sees to it in its statement. A failed step is logged and
//! tried again: nothing that is dispatched depends on it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::config::RelayConfig;
use crate::observe::{Event, Observe};
use crate::outbox::{OutboxError, chain};
use crate::replays::ReplayState;
use crate::upkeep::Upkeep;

/// Between two steps of one purge, so that it never keeps the database busy.
const STEP_PAUSE: Duration = Duration::from_millis(50);

/// Runs for the length of a term. Never ends by itself. `replay_wanted` is set while a replay is to be worked on.
pub(crate) async fn upkeep<O: Upkeep>(
    outbox: Arc<O>,
    observer: Arc<dyn Observe>,
    config: RelayConfig,
    replay_wanted: Arc<AtomicBool>,
) -> OutboxError {
    let mut measure_at = Instant::now();
    let mut purge_at = measure_at + config.purge_every;
    loop {
        tokio::time::sleep_until(measure_at.min(purge_at)).await;
        if Instant::now() >= measure_at {
            if measure(&*outbox, &*observer).await {
                replay_wanted.store(true, Ordering::Release);
            }
            measure_at = Instant::now() + config.backlog_every;
        }
        if Instant::now() >= purge_at {
            let more = match outbox.purge(config.purge).await {
                Ok(purged) => {
                    observer.observe(&Event::PurgeStep(purged));
                    purged.more
                }
                Err(error) => {
                    tracing::warn!(target: "outboxd::purge", error = chain(&error), "purge step failed");
                    false
                }
            };
            purge_at = Instant::now() + if more { STEP_PAUSE } else { config.purge_every };
        }
    }
}

/// Measures the backlog and tells the observer; a failure is logged and costs nothing else. Whether a replay is running.
pub(crate) async fn measure<O: Upkeep>(outbox: &O, observer: &dyn Observe) -> bool {
    match outbox.backlog().await {
        Ok(backlog) => {
            observer.observe(&Event::BacklogMeasured(&backlog));
            backlog.replays.iter().any(|(state, _)| *state == ReplayState::Running)
        }
        Err(error) => {
            tracing::debug!(target: "outboxd::lead", error = chain(&error), "backlog cannot be measured");
            false
        }
    }
}
