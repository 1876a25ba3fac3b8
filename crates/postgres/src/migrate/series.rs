//! What can be installed: each a series of migrations with a schema and a bookkeeping table of its own.

use super::{MIGRATIONS, MigrateError, Migration};
use crate::schema::SchemaName;

/// Every migration of the inbox, ascending.
pub const INBOX_MIGRATIONS: [Migration; 1] = [Migration {
    version: 1,
    name: "inbox",
    sql: include_str!("../../../../migrations/inbox/postgres/0001_inbox.sql"),
}];

/// What a [`Migrator`](super::Migrator) installs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Series {
    /// For who writes intents, and the relay.
    Outbox,
    /// For who handles messages, in a database that may be another one.
    Inbox,
}

impl Series {
    pub(super) fn migrations(self) -> &'static [Migration] {
        match self {
            Self::Outbox => &MIGRATIONS,
            Self::Inbox => &INBOX_MIGRATIONS,
        }
    }

    /// What the files call the schema.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Outbox => "outbox",
            Self::Inbox => "inbox",
        }
    }

    pub(super) fn known(self, version: i32) -> Option<&'static Migration> {
        self.migrations().iter().find(|migration| migration.version == version)
    }

    pub(super) fn not_installed(self, schema: &SchemaName) -> MigrateError {
        match self {
            Self::Outbox => MigrateError::NotInstalled(schema.clone()),
            Self::Inbox => MigrateError::NoInbox(schema.clone()),
        }
    }

    /// Outbox and inbox in one schema would take each other's bookkeeping for their own.
    pub(super) fn refuse_another(self, first: &str, schema: &SchemaName) -> Result<(), MigrateError> {
        let is_of = |series: Self| series.known(1).is_some_and(|migration| migration.name == first);
        let another =
            [Self::Outbox, Self::Inbox].into_iter().find(|series| *series != self && is_of(*series));
        match another {
            Some(another) => {
                Err(MigrateError::Taken { schema: schema.clone(), by: another.word(), wanted: self.word() })
            }
            None => Ok(()),
        }
    }
}
