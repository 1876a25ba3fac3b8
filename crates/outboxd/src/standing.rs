//! Where the relay stands: what the probes and `/status` are answered from.
//!
//! Kept from events alone, so that a probe never waits for the loop, the database or Kafka.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use outboxd_engine::{Backlog, Event, Observe, PublisherStats, Side};
use serde::Serialize;
use tokio::time::Instant;

/// The loop says that it moves at least once a second; after so long without a word it is stuck. Well above what a loaded
/// machine or a slow statement costs, because the answer to it is a restart.
const STUCK_AFTER: Duration = Duration::from_secs(20);

/// The role that a relay plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Role {
    /// It has not reached its outbox yet.
    Starting,
    /// Another relay leads.
    StandingBy,
    /// It leads.
    Leading,
    /// It led, or stood by, and has lost the database.
    Seeking,
    /// It comes to rest.
    Draining,
}

#[derive(Debug)]
struct State {
    role: Role,
    role_since: Instant,
    /// Whether the outbox was found to be as it must be.
    verified: bool,
    epoch: Option<i64>,
    beat_at: Instant,
    out_since: [Option<Instant>; 2],
    dispatched: u64,
    possible_duplicates: u64,
    in_flight: (usize, usize, PublisherStats),
    backlog: Option<(Instant, Backlog)>,
}

/// Where the relay stands.
#[derive(Debug)]
pub(crate) struct Standing {
    started: Instant,
    instance: String,
    database: &'static str,
    state: Mutex<State>,
}

/// A probe's answer: whether it holds, and in a few words why not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Probe {
    pub(crate) holds: bool,
    pub(crate) said: String,
}

/// `/status`. Holds no key, payload or correlation id.
#[derive(Debug, Serialize)]
pub(crate) struct Status {
    version: &'static str,
    instance: String,
    database: &'static str,
    role: Role,
    role_for_seconds: f64,
    epoch: Option<i64>,
    up_for_seconds: f64,
    heartbeat_age_seconds: f64,
    outages: Vec<Outage>,
    dispatched: u64,
    possible_duplicates: u64,
    in_flight: InFlight,
    backlog: Option<Undelivered>,
}

#[derive(Debug, Serialize)]
struct Outage {
    side: &'static str,
    for_seconds: f64,
}

#[derive(Debug, Serialize)]
struct InFlight {
    messages: usize,
    bytes: usize,
    queue_messages: u64,
    queue_bytes: u64,
}

#[derive(Debug, Serialize)]
struct Undelivered {
    measured_seconds_ago: f64,
    messages: u64,
    oldest_age_seconds: f64,
    scheduled: u64,
    held: Vec<Held>,
}

#[derive(Debug, Serialize)]
struct Held {
    state: String,
    reason: String,
    messages: u64,
}

impl Standing {
    /// A relay that has just started.
    pub(crate) fn new(instance: &str, database: &'static str) -> Self {
        let now = Instant::now();
        let state = State {
            role: Role::Starting,
            role_since: now,
            verified: false,
            epoch: None,
            beat_at: now,
            out_since: [None; 2],
            dispatched: 0,
            possible_duplicates: 0,
            in_flight: (0, 0, PublisherStats::default()),
            backlog: None,
        };
        Self { started: now, instance: instance.to_owned(), database, state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The relay was asked to stop.
    pub(crate) fn draining(&self) {
        self.state().take_role(Role::Draining);
    }

    /// Whether this relay leads.
    pub(crate) fn is_leading(&self) -> bool {
        self.state().role == Role::Leading
    }

    /// Whether the loop moves.
    pub(crate) fn alive(&self) -> Probe {
        self.alive_at(Instant::now())
    }

    fn alive_at(&self, now: Instant) -> Probe {
        let silent = now.saturating_duration_since(self.state().beat_at);
        let holds = silent < STUCK_AFTER;
        let said = if holds {
            "the loop moves".to_owned()
        } else {
            format!("the loop has not moved for {} s", silent.as_secs())
        };
        Probe { holds, said }
    }

    /// Whether configuration and schema are good and the relay leads or stands by. An outage of database or Kafka is no
    /// reason to be unready: in a sidecar that would take the application out of service.
    pub(crate) fn ready(&self) -> Probe {
        let state = self.state();
        let (holds, said) = match state.role {
            Role::Draining => (false, "draining".to_owned()),
            Role::Starting => (false, "the outbox was not reached yet".to_owned()),
            Role::StandingBy => (true, "standing by".to_owned()),
            Role::Leading => (true, "leading".to_owned()),
            Role::Seeking => (state.verified, "has lost the database and waits for it".to_owned()),
        };
        Probe { holds, said }
    }

    /// Whether it is ready and no side is out.
    pub(crate) fn ready_strictly(&self) -> Probe {
        let ready = self.ready();
        if !ready.holds {
            return ready;
        }
        let state = self.state();
        let out: Vec<&str> = SIDES
            .iter()
            .zip(state.out_since)
            .filter_map(|(side, since)| since.map(|_| side.as_str()))
            .collect();
        if !out.is_empty() {
            return Probe {
                holds: false,
                said: format!("{}; not available: {}", ready.said, out.join(", ")),
            };
        }
        Probe { holds: state.role != Role::Seeking, said: ready.said }
    }

    /// `/status`.
    pub(crate) fn status(&self) -> Status {
        let state = self.state();
        let outages = SIDES.iter().zip(state.out_since).filter_map(|(side, since)| {
            Some(Outage { side: side.as_str(), for_seconds: since?.elapsed().as_secs_f64() })
        });
        let (messages, bytes, queue) = state.in_flight;
        Status {
            version: env!("CARGO_PKG_VERSION"),
            instance: self.instance.clone(),
            database: self.database,
            role: state.role,
            role_for_seconds: state.role_since.elapsed().as_secs_f64(),
            epoch: state.epoch,
            up_for_seconds: self.started.elapsed().as_secs_f64(),
            heartbeat_age_seconds: state.beat_at.elapsed().as_secs_f64(),
            outages: outages.collect(),
            dispatched: state.dispatched,
            possible_duplicates: state.possible_duplicates,
            in_flight: InFlight {
                messages,
                bytes,
                queue_messages: queue.queue_messages,
                queue_bytes: queue.queue_bytes,
            },
            backlog: state.backlog.as_ref().map(|(measured, backlog)| Undelivered {
                measured_seconds_ago: measured.elapsed().as_secs_f64(),
                messages: backlog.messages,
                oldest_age_seconds: backlog.oldest_age.as_secs_f64(),
                scheduled: backlog.scheduled,
                held: backlog
                    .held
                    .iter()
                    .map(|(state, reason, messages)| Held {
                        state: state.clone(),
                        reason: reason.clone(),
                        messages: *messages,
                    })
                    .collect(),
            }),
        }
    }
}

const SIDES: [Side; 2] = [Side::Database, Side::Kafka];

impl State {
    /// A drain is not taken back by what the loop still says.
    fn take_role(&mut self, role: Role) {
        if self.role != role && self.role != Role::Draining {
            self.role = role;
            self.role_since = Instant::now();
        }
    }

    fn set_out(&mut self, side: Side, since: Option<Instant>) {
        match side {
            Side::Database => self.out_since[0] = since,
            Side::Kafka => self.out_since[1] = since,
        }
    }
}

impl Observe for Standing {
    fn observe(&self, event: &Event<'_>) {
        match *event {
            Event::Heartbeat => self.state().beat_at = Instant::now(),
            Event::StandingBy => {
                let mut state = self.state();
                state.verified = true;
                state.take_role(Role::StandingBy);
            }
            Event::Leading { epoch } => {
                let mut state = self.state();
                state.verified = true;
                state.epoch = Some(epoch);
                state.take_role(Role::Leading);
            }
            Event::LeadLost { .. } => self.state().take_role(Role::Seeking),
            Event::OutageBegan { side } => {
                let mut state = self.state();
                state.set_out(side, Some(Instant::now()));
                if side == Side::Database && state.verified {
                    state.take_role(Role::Seeking);
                }
            }
            Event::OutageEnded { side, .. } => self.state().set_out(side, None),
            Event::Settled { messages, .. } => self.state().dispatched += messages,
            Event::PossibleDuplicates { messages } => self.state().possible_duplicates += messages,
            Event::InFlight { messages, bytes, publisher } => {
                self.state().in_flight = (messages, bytes, publisher);
            }
            Event::BacklogMeasured(backlog) => {
                self.state().backlog = Some((Instant::now(), backlog.clone()));
            }
            Event::SettleRefused
            | Event::Reconnected { .. }
            | Event::PageRead { .. }
            | Event::PageDurable { .. }
            | Event::Enqueued { .. }
            | Event::Acknowledged { .. }
            | Event::Replayed { .. }
            | Event::Attempt { .. }
            | Event::Scheduled
            | Event::Held { .. }
            | Event::Overtaken
            | Event::Skipped
            | Event::DeadLettered
            | Event::DeadLetterFailed
            | Event::PartitionsChanged
            | Event::Released { .. }
            | Event::Settling
            | Event::PurgeStep(_)
            | Event::SweepTurn(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_leaves_a_relay_ready_and_strictly_unready() {
        let standing = Standing::new("relay-1", "postgres");
        assert!(!standing.ready().holds, "an outbox that nobody has seen may be wrong");
        standing.observe(&Event::OutageBegan { side: Side::Kafka });
        standing.observe(&Event::Leading { epoch: 3 });
        assert!(standing.ready().holds);
        assert_eq!(standing.ready_strictly().said, "leading; not available: kafka");
        standing.observe(&Event::OutageBegan { side: Side::Database });
        standing.observe(&Event::LeadLost { orderly: false });
        assert!(standing.ready().holds && standing.alive().holds);
        assert!(!standing.ready_strictly().holds);
        standing.observe(&Event::OutageEnded { side: Side::Kafka, lasted: Duration::ZERO });
        standing.observe(&Event::OutageEnded { side: Side::Database, lasted: Duration::ZERO });
        standing.observe(&Event::StandingBy);
        assert!(standing.ready_strictly().holds);
    }

    #[test]
    fn a_relay_that_drains_takes_no_more_work_whatever_the_loop_still_says() {
        let standing = Standing::new("relay-1", "postgres");
        standing.observe(&Event::Leading { epoch: 3 });
        standing.draining();
        standing.observe(&Event::Leading { epoch: 3 });
        assert!(!standing.ready().holds);
        assert_eq!(standing.status().role, Role::Draining);
    }

    #[test]
    fn a_loop_that_says_nothing_is_stuck() {
        let standing = Standing::new("relay-1", "postgres");
        let later = Instant::now() + STUCK_AFTER;
        assert!(standing.alive_at(later - Duration::from_secs(1)).holds);
        assert!(!standing.alive_at(later).holds);
        standing.observe(&Event::Heartbeat);
        assert!(standing.alive_at(later - Duration::from_secs(1)).holds);
    }
}
