//! Canaries: messages of the relay's own, emitted into the outbox and consumed from Kafka, so that somebody knows whether the whole path
//! works while nobody else sends anything.
//!
//! One is on its way at a time. While it does not come every interval counts a failure, and no second one is emitted before the first
//! is given up: an outage leaves few messages behind, not one for each interval. One has to be given up in the end, because it may
//! never come: an operator discarded it, or it went to a partition that was added after the reader began.

use std::sync::Arc;
use std::time::Duration;

use outboxd_engine::Canary;
use outboxd_kafka::{KafkaConfig, RecordReader};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use uuid::Uuid;

use crate::config::CanarySection;
use crate::metrics::Metrics;
use crate::standing::Standing;

/// Intervals for which a canary is waited for.
const GIVEN_UP_AFTER: u32 = 30;

/// A canary that is waited for.
struct Flying {
    id: Uuid,
    emitted: Instant,
}

/// Sends canaries for as long as it is polled.
pub(crate) async fn send_canaries(
    outbox: impl Canary,
    kafka: KafkaConfig,
    section: CanarySection,
    standing: Arc<Standing>,
    metrics: Arc<Metrics>,
) -> anyhow::Result<()> {
    let mut turns = interval(section.every);
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut reader, mut flying): (Option<RecordReader>, Option<Flying>) = (None, None);
    let mut is_failing = false;
    loop {
        turns.tick().await;
        let leads = standing.is_leading();
        metrics.sending_canaries(leads);
        if !leads {
            // Whoever leads now sends its own.
            (reader, flying) = (None, None);
            continue;
        }
        match turn(&outbox, &kafka, &section, &mut reader, &mut flying).await {
            Ok(after) => {
                if std::mem::take(&mut is_failing) {
                    tracing::info!(target: "outboxd::canary", seconds = after.as_secs_f64(), "canaries come again");
                }
                metrics.canary_seen(after);
            }
            Err(error) => {
                metrics.canary_failed();
                if !std::mem::replace(&mut is_failing, true) {
                    tracing::warn!(target: "outboxd::canary", error = format!("{error:#}"), topic = section.destination,
                        "a canary did not come; each interval counts until one does");
                }
            }
        }
    }
}

/// Emits one, unless one is on its way, and waits for it at most for an interval.
async fn turn(
    outbox: &impl Canary,
    kafka: &KafkaConfig,
    section: &CanarySection,
    reader: &mut Option<RecordReader>,
    flying: &mut Option<Flying>,
) -> anyhow::Result<Duration> {
    // Before the canary is emitted: it reads what comes from now on. A topic that does not exist gets none.
    let listening = match reader {
        Some(reader) => reader,
        None => reader.insert(RecordReader::from_end(kafka, &[&section.destination]).await?),
    };
    let Flying { id, emitted } = match flying {
        Some(flying) => flying,
        None => {
            let emitted = Instant::now();
            flying.insert(Flying { id: outbox.emit_canary(&section.topic).await?, emitted })
        }
    };
    let id = id.to_string();
    let seen = async {
        loop {
            if listening.next().await?.header("id") == Some(&id) {
                return Ok::<_, outboxd_kafka::ReadError>(());
            }
        }
    };
    match timeout(section.every, seen).await {
        Ok(Ok(())) => {
            let after = emitted.elapsed();
            *flying = None;
            Ok(after)
        }
        Ok(Err(error)) => {
            // The topic was made anew, for example: another reader, and another canary.
            (*reader, *flying) = (None, None);
            Err(error.into())
        }
        Err(_) => {
            if emitted.elapsed() >= section.every.saturating_mul(GIVEN_UP_AFTER) {
                // A reader of the partitions that there are now, and another canary.
                (*reader, *flying) = (None, None);
            }
            anyhow::bail!("not seen within {:?}", section.every)
        }
    }
}
