//! Which file, and how long things may take.

use std::path::PathBuf;
use std::time::Duration;

/// The settings of a SQLite outbox.
#[derive(Clone, Debug)]
pub struct SqliteConfig {
    /// The database file. It is the application's: only `migrate` creates it.
    pub path: PathBuf,
    /// The relay instance, as stored with the lead and the receipts.
    pub relay: String,
    /// How long a leader that stops answering keeps the lead.
    pub lease: Duration,
    /// How long a call may take. Most of it may be spent waiting for the application to release the write lock.
    pub deadline: Duration,
}

impl SqliteConfig {
    /// The defaults for a file: a lease of 10 s and a deadline of 10 s.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            relay: "outboxd".to_owned(),
            lease: Duration::from_secs(10),
            deadline: Duration::from_secs(10),
        }
    }

    /// How long SQLite itself waits for a lock: less than the deadline, so that the error says "database is locked" and the
    /// session survives.
    pub(crate) fn busy_timeout(&self) -> Duration {
        self.deadline.mul_f64(0.8)
    }
}
