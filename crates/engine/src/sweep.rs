//! The sweep: from time to time, proves from the table that nothing was lost.
//!
//! It walks over what the cursor has passed, a bounded turn at a time, and compares it with what became of each message. It must always
//! find nothing. What it finds is held by the outbox and so published in the order of its key; it is counted and logged as an error,
//! because a promise was broken and mended.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::config::RelayConfig;
use crate::observe::{Event, Observe};
use crate::outbox::{Outbox, OutboxError, Term, chain};
use crate::upkeep::{Stranded, Swept};

/// Shortest pause between two turns of a lap.
const TURN_PAUSE_MIN: Duration = Duration::from_millis(50);
/// A turn that took a time is followed by a pause of so many times that: the sweep never has more than a tenth of a connection.
const PAUSE_PER_TURN: u32 = 9;
/// Messages named in one line of the log.
const NAMED_MAX: usize = 10;

/// Sweeps in laps for the length of a term. Ends only when the term does. `found` is set when there is something to release.
pub(crate) async fn laps<O: Outbox>(
    outbox: Arc<O>,
    observer: Arc<dyn Observe>,
    config: RelayConfig,
    term: Term,
    found: Arc<AtomicBool>,
) -> OutboxError {
    let mut has_failed = false;
    loop {
        let began = Instant::now();
        let pause = match outbox.sweep(term, config.sweep_rows, &config.routes).await {
            Ok(swept) => {
                if !swept.stranded.is_empty() {
                    report(&swept);
                    found.store(true, Ordering::Release);
                }
                has_failed = false;
                observer.observe(&Event::SweepTurn(&swept));
                let turn = (began.elapsed() * PAUSE_PER_TURN).max(TURN_PAUSE_MIN);
                if swept.lap_ended { turn.max(config.sweep_every) } else { turn }
            }
            Err(error @ OutboxError::Fenced) => return error,
            Err(error @ (OutboxError::Unavailable { .. } | OutboxError::Refused { .. })) => {
                // Once may be an outage, which others tell of and which ends the term.
                if has_failed {
                    tracing::warn!(target: "outboxd::sweep", error = chain(&error), "turns of the sweep fail");
                } else {
                    tracing::debug!(target: "outboxd::sweep", error = chain(&error), "turn of the sweep failed");
                }
                has_failed = true;
                config.backoff_max
            }
        };
        tokio::time::sleep(pause).await;
    }
}

fn report(swept: &Swept) {
    for Stranded { seq, id, correlation_id } in swept.stranded.iter().take(NAMED_MAX) {
        tracing::error!(target: "outboxd::sweep", seq = seq.0, message_id = %id, correlation_id,
            "messages that the cursor had passed were not delivered; this is one of them");
    }
    tracing::error!(target: "outboxd::sweep", messages = swept.stranded.len(),
        "messages that the cursor had passed were not delivered; they are held and will be published: find out how they got there");
}
