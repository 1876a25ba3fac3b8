//! What can be installed: each a series of migrations with a bookkeeping table of its own.

use super::{MIGRATIONS, Migration};

/// Every migration of the inbox, in order.
pub const INBOX_MIGRATIONS: [Migration; 1] = [Migration {
    version: 1,
    name: "inbox",
    sql: include_str!("../../../../migrations/inbox/sqlite/0001_inbox.sql"),
}];

/// What a [`Migrator`](super::Migrator) installs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Series {
    /// For who writes intents, and the relay.
    Outbox,
    /// For who handles messages, in a file that may be another one.
    Inbox,
}

impl Series {
    pub(super) fn migrations(self) -> &'static [Migration] {
        match self {
            Self::Outbox => &MIGRATIONS,
            Self::Inbox => &INBOX_MIGRATIONS,
        }
    }

    /// The bookkeeping table.
    pub(super) fn table(self) -> &'static str {
        match self {
            Self::Outbox => "outbox_migration",
            Self::Inbox => "inbox_migration",
        }
    }

    /// What was applied.
    pub(super) fn applied_sql(self) -> &'static str {
        match self {
            Self::Outbox => include_str!("../sql/applied.sql"),
            Self::Inbox => include_str!("../sql/inbox_applied.sql"),
        }
    }

    /// Adds the checksum to what a migration entered.
    pub(super) fn migration_applied_sql(self) -> &'static str {
        match self {
            Self::Outbox => include_str!("../sql/migration_applied.sql"),
            Self::Inbox => include_str!("../sql/inbox_migration_applied.sql"),
        }
    }
}
