//! The continuous verify: a few of the newest messages, looked at again and again while the relay leads.
//!
//! It has a connection of its own to the database and to Kafka, so that nothing on the path waits for it, and bears no
//! part of it: what it cannot do is logged and tried again at the next turn.

use std::sync::Arc;

use outboxd_core::Seq;
use outboxd_engine::{Verify, Wanted};
use outboxd_kafka::KafkaConfig;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use tokio::time::{MissedTickBehavior, interval};

use super::{Clock, Report, Sample, Verifier, VerifyError};
use crate::config::VerifySection;
use crate::metrics::Metrics;
use crate::standing::Standing;

/// The messages that a sample is taken of: the newest so many places.
const NEWEST: i64 = 100_000;

/// Findings of a turn that are logged one by one.
const LOGGED_MAX: usize = 10;

/// Verifies for as long as it is polled.
pub(crate) async fn verify_continuously(
    outbox: impl Verify,
    kafka: KafkaConfig,
    section: VerifySection,
    standing: Arc<Standing>,
    metrics: Arc<Metrics>,
) -> anyhow::Result<()> {
    let mut rng = StdRng::seed_from_u64(rand::random());
    let mut verifier = Verifier::sampling(outbox, &kafka).await?;
    let mut turns = interval(section.every);
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut is_failing = false;
    loop {
        turns.tick().await;
        let leads = standing.is_leading();
        metrics.verifying(leads);
        if !leads {
            continue;
        }
        match turn(&mut verifier, section.sample, &mut rng).await {
            Ok(report) => {
                is_failing = false;
                metrics.verified(&report);
                tell(&report);
            }
            Err(error) => {
                // What was counted so far belongs to no whole turn.
                let _unfinished = verifier.take_report();
                if !std::mem::replace(&mut is_failing, true) {
                    let error = anyhow::Error::from(error);
                    tracing::warn!(target: "outboxd::verify", error = format!("{error:#}"),
                        "the continuous verify cannot look; it goes on trying");
                }
            }
        }
    }
}

async fn turn<O: Verify>(
    verifier: &mut Verifier<O>,
    sample: u64,
    rng: &mut StdRng,
) -> Result<Report, VerifyError> {
    if let Some((first, last)) = verifier.outbox().ends().await? {
        let first = first.max(Seq(last.0.saturating_sub(NEWEST)));
        let places = Sample::Messages(sample).places(first, last, rng);
        let prints = verifier.outbox().fingerprints(&Wanted::At(places)).await?;
        let clock = Clock::set(verifier.outbox().history().await?.now);
        verifier.page(prints, clock).await?;
    }
    Ok(verifier.take_report())
}

fn tell(report: &Report) {
    let wrong = report.details.iter().filter(|detail| !detail.finding.is_expected());
    for detail in wrong.take(LOGGED_MAX) {
        tracing::error!(
            target: "outboxd::verify",
            finding = detail.finding.as_str(),
            id = detail.id.map(tracing::field::display),
            topic = detail.topic,
            partition = detail.partition,
            offset = detail.offset,
            "a message is not where its receipt says: {}", detail.said
        );
    }
    tracing::debug!(target: "outboxd::verify", messages = report.messages, verified = report.verified, "verified");
}
