//! `verify.*` and `canary.*`: what the leader proves while it relays.

use std::time::Duration;

use outboxd_core::Routes;
use outboxd_core::record::topic_is_legal;

use super::raw::Origin;
use super::{Check, Problem};

/// What the leader proves; all of it is off unless it is configured.
#[derive(Clone, Debug, Default)]
pub(crate) struct ProofSection {
    /// Continuous verify.
    pub(crate) verify: Option<VerifySection>,
    /// Canaries.
    pub(crate) canary: Option<CanarySection>,
}

/// Continuous verify.
#[derive(Clone, Copy, Debug)]
pub(crate) struct VerifySection {
    /// Between two looks.
    pub(crate) every: Duration,
    /// Messages of a look.
    pub(crate) sample: u64,
}

/// Canaries.
#[derive(Clone, Debug)]
pub(crate) struct CanarySection {
    /// Between two of them.
    pub(crate) every: Duration,
    /// The topic that their intents name.
    pub(crate) topic: String,
    /// That topic at Kafka.
    pub(crate) destination: String,
}

pub(super) fn of(check: &mut Check, routes: &Routes) -> ProofSection {
    let sample = check.number("verify.sample");
    let verify = seconds(check, "verify.every_s").map(|every| VerifySection { every, sample });
    let topic = check.text("canary.topic", topic_is_legal);
    let canary = seconds(check, "canary.every_s").and_then(|every| {
        let Some(topic) = topic else {
            if !check.complained_about("canary.topic") {
                problem(check, "is not set, and canary.every_s is: name a topic of their own".to_owned());
            }
            return None;
        };
        let destination = routes.destination(&topic);
        if destination.refusal.is_some() {
            problem(
                check,
                format!("{topic:?} is not among relay.topics_allowed: its messages would be parked"),
            );
        }
        Some(CanarySection { every, destination: destination.topic.to_string(), topic })
    });
    ProofSection { verify, canary }
}

/// `None`: 0, which is never.
fn seconds(check: &mut Check, name: &str) -> Option<Duration> {
    Some(check.number(name)).filter(|seconds| *seconds > 0).map(Duration::from_secs)
}

fn problem(check: &mut Check, said: String) {
    let origin = check.get("canary.topic").map_or(Origin::Default, |(_, origin)| origin);
    check.problems.push(Problem { key: "canary.topic".to_owned(), said, origin });
}
