//! How late delivery is, between two looks at the table.
//!
//! The backlog is measured every few seconds, and not at all while the database is out. Between measurements the oldest
//! message gets older with the clock, until as many messages were settled as the measurement had counted: then nothing of
//! what it saw is left, unless some of it is held.

use std::time::Duration;

use outboxd_engine::Backlog;
use tokio::time::Instant;

/// What is known of the delivery.
#[derive(Debug)]
pub(super) struct Delivery {
    beat_at: Instant,
    measured_at: Instant,
    oldest_age: Duration,
    /// Messages of the measurement that are not known to be settled.
    left: u64,
    any_held: bool,
    /// When the sweep had compared the whole table; `None`: this relay does not lead.
    lap_at: Option<Instant>,
}

impl Delivery {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            beat_at: now,
            measured_at: now,
            oldest_age: Duration::ZERO,
            left: 0,
            any_held: false,
            lap_at: None,
        }
    }

    pub(super) fn beat(&mut self, now: Instant) {
        self.beat_at = now;
    }

    pub(super) fn measured(&mut self, now: Instant, backlog: &Backlog) {
        self.measured_at = now;
        self.oldest_age = backlog.oldest_age;
        self.left = backlog.messages;
        self.any_held = backlog.held.iter().any(|(_, _, messages)| *messages > 0);
    }

    pub(super) fn settled(&mut self, messages: u64) {
        self.left = self.left.saturating_sub(messages);
    }

    /// Age of the oldest undelivered message, at least.
    pub(super) fn oldest_age(&self, now: Instant) -> Duration {
        if self.left == 0 && !self.any_held {
            return Duration::ZERO;
        }
        self.oldest_age + self.measured_age(now)
    }

    pub(super) fn measured_age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.measured_at)
    }

    /// A lap of the sweep ended so long ago; `None`: it is not this relay that sweeps.
    pub(super) fn swept(&mut self, now: Instant, lap_age: Option<Duration>) {
        self.lap_at = lap_age.map(|age| now.checked_sub(age).unwrap_or(now));
    }

    /// Time since the sweep has compared the whole table.
    pub(super) fn lap_age(&self, now: Instant) -> Duration {
        self.lap_at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at))
    }

    pub(super) fn heartbeat_age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.beat_at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backlog(messages: u64, oldest_s: u64, held: u64) -> Backlog {
        Backlog {
            messages,
            oldest_age: Duration::from_secs(oldest_s),
            scheduled: 0,
            held: vec![("parked".to_owned(), "too_large".to_owned(), held)],
            replays: Vec::new(),
        }
    }

    #[test]
    fn the_oldest_message_ages_between_measurements_and_while_there_are_none() {
        let start = Instant::now();
        let mut delivery = Delivery::new(start);
        delivery.measured(start, &backlog(3, 7, 0));
        assert_eq!(delivery.oldest_age(start + Duration::from_secs(600)), Duration::from_secs(607));
        assert_eq!(delivery.measured_age(start + Duration::from_secs(600)), Duration::from_secs(600));
    }

    #[test]
    fn a_lap_that_does_not_end_gets_older_until_the_lead_is_lost() {
        let start = Instant::now() + Duration::from_secs(1_000);
        let mut delivery = Delivery::new(start);
        assert_eq!(delivery.lap_age(start), Duration::ZERO);
        delivery.swept(start, Some(Duration::from_secs(5)));
        assert_eq!(delivery.lap_age(start + Duration::from_secs(600)), Duration::from_secs(605));
        delivery.swept(start, None);
        assert_eq!(delivery.lap_age(start + Duration::from_secs(600)), Duration::ZERO);
    }

    #[test]
    fn once_everything_that_was_measured_is_settled_nothing_is_old() {
        let start = Instant::now();
        let mut delivery = Delivery::new(start);
        delivery.measured(start, &backlog(3, 7, 0));
        delivery.settled(2);
        assert!(delivery.oldest_age(start) > Duration::ZERO);
        delivery.settled(1);
        assert_eq!(delivery.oldest_age(start + Duration::from_secs(1)), Duration::ZERO);
    }

    #[test]
    fn a_held_message_keeps_ageing_whatever_else_is_settled() {
        let start = Instant::now();
        let mut delivery = Delivery::new(start);
        delivery.measured(start, &backlog(0, 60, 1));
        delivery.settled(1_000);
        assert_eq!(delivery.oldest_age(start + Duration::from_secs(1)), Duration::from_secs(61));
    }
}
