//! Which adapters a configuration means.

use std::time::Duration;

use outboxd_postgres::PostgresConfig;
use outboxd_sqlite::SqliteConfig;
use secrecy::ExposeSecret as _;

use crate::config::{Config, Database};
use crate::failure::Failure;

/// The adapter of the database, configured.
#[derive(Clone, Debug)]
pub(crate) enum Adapter {
    /// PostgreSQL.
    Postgres(Box<PostgresConfig>),
    /// SQLite.
    Sqlite(SqliteConfig),
}

impl Adapter {
    /// What `database.url` means.
    ///
    /// # Errors
    /// [`Failure::config`] if the adapter does not take the URL.
    pub(crate) fn of(config: &Config) -> Result<Self, Failure> {
        match &config.database {
            Some(Database::Postgres { url }) => {
                let mut postgres = PostgresConfig::from_url(
                    Database::for_driver(url).expose_secret(),
                    config.schema.clone(),
                    &config.instance,
                )
                .map_err(Failure::config)?;
                postgres.lead_session = config.lead_session;
                postgres.deadline = call_deadline(config.lead_session);
                Ok(Self::Postgres(Box::new(postgres)))
            }
            Some(Database::Sqlite { path }) => {
                let mut sqlite = SqliteConfig::new(path);
                sqlite.relay.clone_from(&config.instance);
                sqlite.lease = config.lead_session;
                Ok(Self::Sqlite(sqlite))
            }
            None => Err(Failure::bug(anyhow::anyhow!("a command without its database"))),
        }
    }
}

/// A call that takes longer than half a lead session would be answered after the lead is gone.
fn call_deadline(lead_session: Duration) -> Duration {
    (lead_session / 2).max(Duration::from_secs(1))
}
