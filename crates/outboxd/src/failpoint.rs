//! Ends the process at a named stage, or with a certain record, for the crash tests. Compiled only with the feature
//! `failpoints`.

use std::sync::atomic::{AtomicU64, Ordering};

use outboxd_core::{DeliveryError, Record};
use outboxd_engine::{EnqueueError, Event, Observe, Publisher, PublisherStats, Report, Token, TopicState};

/// The variable that sets it: `stage:n`, or `record:header`.
pub(crate) const VARIABLE: &str = "OUTBOXD_FAILPOINT";

/// A place in the loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    Read,
    Durable,
    Enqueued,
    Acknowledged,
    Settling,
    Settled,
    DeadLettered,
    Replayed,
}

const STAGES: [(&str, Stage); 8] = [
    ("read", Stage::Read),
    ("durable", Stage::Durable),
    ("enqueued", Stage::Enqueued),
    ("acknowledged", Stage::Acknowledged),
    ("settling", Stage::Settling),
    ("settled", Stage::Settled),
    ("dead_lettered", Stage::DeadLettered),
    ("replayed", Stage::Replayed),
];

/// Aborts the process. No destructor runs, as with `kill -9`.
#[derive(Debug)]
pub(crate) enum Failpoint {
    /// When a stage is reached for the n-th time.
    Stage { stage: Stage, left: AtomicU64 },
    /// When a record that has this header among its own is handed to the client.
    Record { header: String },
}

impl Failpoint {
    /// Understands `stage:n` and `record:header`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (word, times) = text.split_once(':')?;
        if word == "record" {
            return (!times.is_empty()).then(|| Self::Record { header: times.to_owned() });
        }
        let (_, stage) = STAGES.iter().find(|(its, _)| *its == word)?;
        let times: u64 = times.parse().ok().filter(|times| *times > 0)?;
        Some(Self::Stage { stage: *stage, left: AtomicU64::new(times) })
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
            Event::Replayed { .. } => Some(Stage::Replayed),
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
        let Self::Stage { stage, left } = self else { return };
        if Self::reached(event) != Some(*stage) {
            return;
        }
        let left = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        if left == Ok(1) {
            std::process::abort();
        }
    }
}

/// A publisher whose process may end with a record.
#[derive(Debug)]
pub(crate) struct Guarded<P> {
    publisher: P,
    deadly: Option<String>,
}

impl<P: Publisher> Guarded<P> {
    pub(crate) fn new(publisher: P, failpoint: Option<&Failpoint>) -> Self {
        let deadly = match failpoint {
            Some(Failpoint::Record { header }) => Some(header.clone()),
            Some(Failpoint::Stage { .. }) | None => None,
        };
        Self { publisher, deadly }
    }
}

impl<P: Publisher> Publisher for Guarded<P> {
    fn enqueue(&mut self, token: Token, record: Record) -> Result<(), EnqueueError> {
        if self
            .deadly
            .as_ref()
            .is_some_and(|deadly| record.own_headers.iter().any(|(name, _)| name == deadly))
        {
            std::process::abort();
        }
        self.publisher.enqueue(token, record)
    }

    fn reports(&mut self, into: &mut Vec<Report>) -> impl Future<Output = ()> + Send {
        self.publisher.reports(into)
    }

    fn look_up(
        &self,
        topics: Vec<String>,
    ) -> impl Future<Output = Vec<(String, TopicState)>> + Send + 'static {
        self.publisher.look_up(topics)
    }

    fn cluster(&self) -> impl Future<Output = Result<Option<String>, DeliveryError>> + Send + 'static {
        self.publisher.cluster()
    }

    fn must_renew(&self) -> bool {
        self.publisher.must_renew()
    }

    fn renew(&mut self) -> impl Future<Output = ()> + Send {
        self.publisher.renew()
    }

    fn close(&mut self) -> impl Future<Output = ()> + Send {
        self.publisher.close()
    }

    fn stats(&self) -> PublisherStats {
        self.publisher.stats()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failpoint_names_a_stage_and_counts_from_one() {
        assert!(Failpoint::parse("settling:3").is_some() && Failpoint::parse("record:deadly").is_some());
        for refused in ["record:", "settling", "settling:0", "settling:x", "nowhere:1", ""] {
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
