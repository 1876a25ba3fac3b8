//! The loop's settings.

use std::time::Duration;

use outboxd_core::Routes;

use crate::outbox::{PageLimit, PurgeLimit};

/// The loop's settings. Times are durations, sizes are counts or bytes as named.
#[derive(Clone, Debug)]
pub struct RelayConfig {
    /// How much a page may hold.
    pub page: PageLimit,
    /// Messages between read and settled; at least a page.
    pub in_flight_messages: usize,
    /// Bytes between read and settled; at least a page.
    pub in_flight_bytes: usize,
    /// Pause after a page that was not full.
    pub poll_min: Duration,
    /// Longest pause while the outbox is quiet.
    pub poll_max: Duration,
    /// Between the beginnings of two settles.
    pub settle_every: Duration,
    /// Attempts after which a message is parked, unless its route says otherwise.
    pub attempts_max: u32,
    /// Policies per topic.
    pub routes: Routes,
    /// No delivery report for so long, with records in flight, is an outage.
    pub outage_after: Duration,
    /// Shortest back-off.
    pub backoff_min: Duration,
    /// Longest back-off.
    pub backoff_max: Duration,
    /// How often a standby tries to take the lead.
    pub standby_poll: Duration,
    /// How often held messages are looked at, while there are any.
    pub held_every: Duration,
    /// How often the backlog is measured.
    pub backlog_every: Duration,
    /// How often purge looks for work.
    pub purge_every: Duration,
    /// What purge may delete.
    pub purge: PurgeLimit,
    /// How long a drain may take.
    pub grace: Duration,
    /// Whether log lines about a message show its key beside the hash.
    pub log_keys: bool,
}

impl Default for RelayConfig {
    fn default() -> Self {
        const DAY: Duration = Duration::from_secs(24 * 60 * 60);
        Self {
            page: PageLimit { messages: 2_000, bytes: 4 << 20 },
            in_flight_messages: 16_000,
            in_flight_bytes: 32 << 20,
            poll_min: Duration::from_millis(1),
            poll_max: Duration::from_millis(20),
            settle_every: Duration::from_millis(25),
            attempts_max: 10,
            routes: Routes::default(),
            outage_after: Duration::from_secs(30),
            backoff_min: Duration::from_millis(100),
            backoff_max: Duration::from_secs(30),
            standby_poll: Duration::from_millis(250),
            held_every: Duration::from_millis(250),
            backlog_every: Duration::from_secs(2),
            purge_every: Duration::from_secs(60),
            purge: PurgeLimit { keep_messages: 7 * DAY, keep_receipts: 30 * DAY, rows: 1_000 },
            grace: Duration::from_secs(25),
            log_keys: false,
        }
    }
}
