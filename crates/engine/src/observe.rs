//! What happened in the loop, told as it happens.
//!
//! Metrics, the liveness probe and crash tests listen here. An observer is called on the loop's own task: it must be quick
//! and must not block.

use std::time::Duration;

use outboxd_core::{HoldReason, Verdict};

use crate::attempt::{Attempt, Follow};
use crate::publisher::PublisherStats;
use crate::upkeep::{Backlog, Purged, Swept};

/// A side of the relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// The database with the outbox.
    Database,
    /// Kafka.
    Kafka,
}

impl Side {
    /// The word used in metrics and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Database => "database",
            Self::Kafka => "kafka",
        }
    }
}

/// How an attempt to publish ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Acknowledged.
    Acknowledged,
    /// Not the message's fault; nothing charged.
    Outage,
    /// To be tried alone.
    TryAlone,
    /// To be tried again later; charged.
    Retry,
    /// Held for its topic.
    HoldTopic,
    /// Parked.
    Parked,
}

impl Outcome {
    /// Every outcome.
    pub const ALL: [Self; 6] =
        [Self::Acknowledged, Self::Outage, Self::TryAlone, Self::Retry, Self::HoldTopic, Self::Parked];

    /// How an attempt ended that has this verdict.
    #[must_use]
    pub fn of(verdict: &Verdict) -> Self {
        match verdict {
            Verdict::Dispatched(_) => Self::Acknowledged,
            Verdict::Outage | Verdict::OutageOfProducer => Self::Outage,
            Verdict::TryAlone => Self::TryAlone,
            Verdict::HoldTopic(_) => Self::HoldTopic,
            Verdict::Retry => Self::Retry,
            Verdict::Park(_) => Self::Parked,
        }
    }

    /// The word used in metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Acknowledged => "acknowledged",
            Self::Outage => "outage",
            Self::TryAlone => "try_alone",
            Self::Retry => "retry",
            Self::HoldTopic => "hold_topic",
            Self::Parked => "parked",
        }
    }
}

/// Something that happened.
#[derive(Clone, Debug)]
pub enum Event<'a> {
    /// The loop moves: sent at least once a second, whatever the weather.
    Heartbeat,
    /// The relay stands by: another one leads.
    StandingBy,
    /// The relay leads.
    Leading {
        /// Its epoch.
        epoch: i64,
    },
    /// The lead was given up or lost.
    LeadLost {
        /// Whether it ended as asked (drain) and not by an error.
        orderly: bool,
    },
    /// A settle was refused because another relay has led since.
    SettleRefused,
    /// A side is not available; waiting.
    OutageBegan {
        /// Which.
        side: Side,
    },
    /// The side answers again.
    OutageEnded {
        /// Which.
        side: Side,
        /// How long it took.
        lasted: Duration,
    },
    /// A connection or client was made anew after an error.
    Reconnected {
        /// To which side.
        side: Side,
    },
    /// A page was read. Empty pages are told too.
    PageRead {
        /// Messages in it.
        messages: usize,
        /// How many of them were late.
        late: usize,
        /// How long the statement took.
        took: Duration,
    },
    /// A page is durable and may be published.
    PageDurable {
        /// How long that took after it was read.
        waited: Duration,
    },
    /// Records of one page were handed to the client.
    Enqueued {
        /// How many.
        messages: usize,
    },
    /// The broker has acknowledged a record.
    Acknowledged {
        /// Its topic.
        topic: &'a str,
        /// From the insert of the intent to the acknowledgement.
        age: Duration,
    },
    /// The broker has acknowledged a copy that a replay asks for.
    Replayed {
        /// Its topic.
        topic: &'a str,
    },
    /// An attempt to publish ended.
    Attempt {
        /// How.
        outcome: Outcome,
        /// How many records.
        messages: u64,
    },
    /// A message is put aside until its time.
    Scheduled,
    /// A message is set aside.
    Held {
        /// Why.
        reason: HoldReason,
        /// Whether an operator must decide.
        parked: bool,
    },
    /// A message was parked, and its key goes on without it.
    Skipped,
    /// A parked message was copied to its dead-letter topic.
    DeadLettered,
    /// A message is parked without the copy that its route asks for.
    DeadLetterFailed,
    /// A topic has another number of partitions than before: Kafka places its keys anew.
    PartitionsChanged,
    /// A refusal became known from a delivery report, so that later messages of its key may have overtaken it.
    Overtaken,
    /// Held messages were handed to the client again.
    Released {
        /// How many.
        messages: usize,
    },
    /// A settle is about to be written.
    Settling,
    /// A settle was written.
    Settled {
        /// Messages dispatched by it.
        messages: u64,
        /// How long the statement took.
        took: Duration,
    },
    /// Records were handed to the client that are not settled and will be read again: consumers may see them twice.
    PossibleDuplicates {
        /// At most so many.
        messages: u64,
    },
    /// What is in flight now.
    InFlight {
        /// Messages between read and settled.
        messages: usize,
        /// Their bytes.
        bytes: usize,
        /// The client's queue.
        publisher: PublisherStats,
    },
    /// What is undelivered, measured on the table.
    BacklogMeasured(&'a Backlog),
    /// A purge step.
    PurgeStep(Purged),
    /// A turn of the sweep.
    SweepTurn(&'a Swept),
}

/// Is told what happened.
pub trait Observe: Send + Sync + 'static {
    /// Called on the loop's task. Quick, does not block, does not panic.
    fn observe(&self, event: &Event<'_>);

    /// A record is handed to the client. Who wants to know how that ends returns what follows it; most want not, and then nothing
    /// is kept.
    fn attempt(&self, attempt: &Attempt<'_>) -> Option<Box<dyn Follow>> {
        let _nobody_follows = attempt;
        None
    }
}

/// Between two heartbeats of a relay that waits.
const HEARTBEAT: Duration = Duration::from_millis(500);

/// Does it while the heart beats: whoever asks whether the relay is alive must not take a slow server for a dead relay.
pub(crate) async fn beating<T>(observer: &dyn Observe, work: impl Future<Output = T>) -> T {
    let mut beat = tokio::time::interval(HEARTBEAT);
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            biased;
            done = &mut work => return done,
            _ = beat.tick() => observer.observe(&Event::Heartbeat),
        }
    }
}
