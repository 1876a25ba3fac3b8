//! Ends the process at a named stage, for the crash tests. Compiled only with the feature `failpoints`.

use std::sync::atomic::{AtomicU64, Ordering};

use outboxd_engine::{Event, Observe};

/// The variable that sets it: `stage:n`.
pub(crate) const VARIABLE: &str = "OUTBOXD_FAILPOINT";

/// A place in the loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Read,
    Durable,
    Enqueued,
    Acknowledged,
    Settling,
    Settled,
    DeadLettered,
}

const STAGES: [(&str, Stage); 7] = [
    ("read", Stage::Read),
    ("durable", Stage::Durable),
    ("enqueued", Stage::Enqueued),
    ("acknowledged", Stage::Acknowledged),
    ("settling", Stage::Settling),
    ("settled", Stage::Settled),
    ("dead_lettered", Stage::DeadLettered),
];

/// Aborts the process when a stage is reached for the n-th time. No destructor runs, as with `kill -9`.
#[derive(Debug)]
pub(crate) struct Failpoint {
    stage: Stage,
    left: AtomicU64,
}

impl Failpoint {
    /// Understands `stage:n`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (word, times) = text.split_once(':')?;
        let (_, stage) = STAGES.iter().find(|(its, _)| *its == word)?;
        let times: u64 = times.parse().ok().filter(|times| *times > 0)?;
        Some(Self { stage: *stage, left: AtomicU64::new(times) })
    }

    fn reached(event: &Event<'_>) -> Option<Stage> {
        match event {
            Event::PageRead { messages, .. } => (*messages > 0).then_some(Stage::Read),
            Event::PageDurable { .. } => Some(Stage::Durable),
            Event::Enqueued { .. } => Some(Stage::Enqueued),
            Event::Acknowledged { .. } => Some(Stage::Acknowledged),
            Event::Settling => Some(Stage::Settling),
            Event::Settled { .. } => Some(Stage::Settled),
            Event::DeadLettered => Some(Stage::DeadLettered),
            Event::Heartbeat
            | Event::StandingBy
            | Event::Leading { .. }
            | Event::LeadLost { .. }
            | Event::SettleRefused
            | Event::OutageBegan { .. }
            | Event::OutageEnded { .. }
            | Event::Reconnected { .. }
            | Event::Attempt { .. }
            | Event::Scheduled
            | Event::Held { .. }
            | Event::Overtaken
            | Event::Skipped
            | Event::DeadLetterFailed
            | Event::PartitionsChanged
            | Event::Released { .. }
            | Event::PossibleDuplicates { .. }
            | Event::InFlight { .. }
            | Event::BacklogMeasured(_)
            | Event::PurgeStep(_)
            | Event::SweepTurn(_) => None,
        }
    }
}

impl Observe for Failpoint {
    fn observe(&self, event: &Event<'_>) {
        if Self::reached(event) != Some(self.stage) {
            return;
        }
        let left = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        if left == Ok(1) {
            std::process::abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failpoint_names_a_stage_and_counts_from_one() {
        assert!(Failpoint::parse("settling:3").is_some());
        for refused in ["settling", "settling:0", "settling:x", "nowhere:1", ""] {
            assert!(Failpoint::parse(refused).is_none(), "{refused}");
        }
    }

    #[test]
    fn an_empty_page_is_no_page_read() {
        let took = std::time::Duration::ZERO;
        assert_eq!(Failpoint::reached(&Event::PageRead { messages: 0, late: 0, took }), None);
        assert_eq!(Failpoint::reached(&Event::PageRead { messages: 1, late: 0, took }), Some(Stage::Read));
    }
}
