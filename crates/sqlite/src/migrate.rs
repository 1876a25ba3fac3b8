//! Migrations: numbered, forward only, each applied once in a transaction of its own.
//!
//! The files in `migrations/sqlite` also work with the sqlite3 command line: each enters itself into `outbox_migration`, and
//! what is applied here gets its checksum there as well. The table is ours: an application that uses a migration tool of its
//! own does not see it.

use std::fmt::Write as _;

use sha2::{Digest, Sha256};
use sqlx::{ConnectOptions, Connection, Row, SqliteConnection};
use tokio::time::timeout;

use crate::config::SqliteConfig;
use crate::session::options;

mod series;

mod trace_indexes;

pub use self::series::INBOX_MIGRATIONS;
use self::series::Series;
pub use self::trace_indexes::{IndexAction, IndexStep, TraceIndexes};
pub(crate) use self::trace_indexes::{TRACE_INDEXES, missing as missing_trace_indexes};

/// The schema version that this version of the relay was built for.
pub const SCHEMA_VERSION: i32 = 3;

/// The oldest schema version that it serves; versions 1 and 2 were never in a release.
pub const SCHEMA_VERSION_MIN: i32 = 3;

/// A numbered step of the schema of the outbox or the inbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Migration {
    /// Number, from 1 on.
    pub version: i32,
    /// Name, as in the file's.
    pub name: &'static str,
    /// The file.
    pub sql: &'static str,
}

/// Every migration of the outbox, in order.
pub const MIGRATIONS: [Migration; 3] = [
    Migration { version: 1, name: "outbox", sql: include_str!("../../../migrations/sqlite/0001_outbox.sql") },
    Migration {
        version: 2,
        name: "delivery",
        sql: include_str!("../../../migrations/sqlite/0002_delivery.sql"),
    },
    Migration { version: 3, name: "trace", sql: include_str!("../../../migrations/sqlite/0003_trace.sql") },
];

impl Migration {
    /// SHA-256 of the file, in hexadecimal.
    #[must_use]
    pub fn checksum(&self) -> String {
        Sha256::digest(self.sql.as_bytes()).iter().fold(String::with_capacity(64), |mut text, byte| {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
    }
}

/// Why migrating failed. Nothing of the failing migration was applied.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// The database did not answer in time.
    #[error("{doing}: no answer in time")]
    Deadline {
        /// What was being done.
        doing: &'static str,
    },
    /// The database refused.
    #[error("{doing}")]
    Database {
        /// What was being done.
        doing: String,
        /// The cause.
        #[source]
        source: sqlx::Error,
    },
    /// An applied migration is not the one that this version knows.
    #[error(
        "migration {version} was applied from a different file (checksum {applied}, this version has {known}): \
         it is not safe to go on"
    )]
    Changed {
        /// Its number.
        version: i32,
        /// Checksum in the database.
        applied: String,
        /// Checksum of our file.
        known: String,
    },
    /// The database is ahead of this version.
    #[error("schema version {installed} is installed, this version knows {known}: run a newer outboxd")]
    Newer {
        /// Version in the database.
        installed: i32,
        /// Newest version known here.
        known: i32,
    },
    /// Text would not be stored as the bytes that Kafka gets.
    #[error("the database's encoding is {encoding}: put the outbox in a database whose encoding is UTF-8")]
    Encoding {
        /// As SQLite names it.
        encoding: String,
    },
    /// Nothing to build indexes on.
    #[error("there is no outbox in {0}: run `outboxd migrate` first")]
    NotInstalled(String),
    /// The file cannot be read and written by several processes at once.
    #[error("the database stays in journal mode {mode} instead of wal: put it on a local file system")]
    JournalMode {
        /// As SQLite names it.
        mode: String,
    },
}

/// For `map_err`.
fn database(doing: impl Into<String>) -> impl FnOnce(sqlx::Error) -> MigrateError {
    let doing = doing.into();
    move |source| MigrateError::Database { doing, source }
}

/// Installs the outbox or the inbox in a file. One connection a command, closed at its end.
#[derive(Clone, Debug)]
pub struct Migrator {
    config: SqliteConfig,
    series: Series,
}

impl Migrator {
    /// For the file of the configuration.
    #[must_use]
    pub fn new(config: SqliteConfig) -> Self {
        Self { config, series: Series::Outbox }
    }

    /// For the inbox of consumers in the file of the configuration.
    #[must_use]
    pub fn inbox(config: SqliteConfig) -> Self {
        Self { config, series: Series::Inbox }
    }

    /// What [`Migrator::apply`] would do now. Changes nothing: a file that does not exist is not created.
    ///
    /// # Errors
    /// [`MigrateError`]; also if an applied migration has changed.
    pub async fn plan(&self) -> Result<Vec<Migration>, MigrateError> {
        if !self.config.path.exists() {
            return Ok(self.series.migrations().to_vec());
        }
        self.within("plan migrations", async {
            let mut connection = connect(&self.config, Missing::Fail).await?;
            let applied = applied(&mut connection, self.series)
                .await
                .map_err(database("read the applied migrations"))?;
            close(connection).await;
            compare(&applied, self.series)
        })
        .await
    }

    /// Applies what is missing, creating the file if there is none; nothing if nothing is missing. Several processes may do
    /// it at once: each migration takes the write lock and looks again. Returns what was applied.
    ///
    /// # Errors
    /// [`MigrateError`]. A migration is applied as a whole or not at all.
    pub async fn apply(&self) -> Result<Vec<Migration>, MigrateError> {
        self.within("apply migrations", async {
            let mut connection = connect(&self.config, Missing::Create).await?;
            prepare(&mut connection).await?;
            let mut done = Vec::new();
            while let Some(migration) = apply_next(&mut connection, self.series).await? {
                done.push(migration);
            }
            close(connection).await;
            Ok(done)
        })
        .await
    }

    /// The version that is installed; `None` if there is no outbox in the file.
    ///
    /// # Errors
    /// [`MigrateError::Database`], [`MigrateError::Deadline`]; also if there is no file.
    pub async fn installed_version(&self) -> Result<Option<i32>, MigrateError> {
        const DOING: &str = "read the schema version";
        self.within(DOING, async {
            let mut connection = connect(&self.config, Missing::Fail).await?;
            let version = version_of(&mut connection).await.map_err(database(DOING))?;
            close(connection).await;
            Ok(version)
        })
        .await
    }

    async fn within<T>(
        &self,
        doing: &'static str,
        work: impl Future<Output = Result<T, MigrateError>>,
    ) -> Result<T, MigrateError> {
        timeout(self.config.deadline, work).await.unwrap_or(Err(MigrateError::Deadline { doing }))
    }
}

async fn apply_next(
    connection: &mut SqliteConnection,
    series: Series,
) -> Result<Option<Migration>, MigrateError> {
    let mut transaction =
        connection.begin_with("begin immediate").await.map_err(database("lock the database"))?;
    let applied = applied(&mut transaction, series).await.map_err(database("read the applied migrations"))?;
    let Some(next) = compare(&applied, series)?.first().copied() else { return Ok(None) };
    let failed = || database(format!("apply migration {}", next.version));
    sqlx::raw_sql(next.sql).execute(&mut *transaction).await.map_err(failed())?;
    sqlx::query(series.migration_applied_sql())
        .bind(next.version)
        .bind(next.checksum())
        .bind(concat!("outboxd ", env!("CARGO_PKG_VERSION")))
        .execute(&mut *transaction)
        .await
        .map_err(failed())?;
    transaction.commit().await.map_err(failed())?;
    Ok(Some(next))
}

/// Which version is installed.
pub(crate) async fn version_of(connection: &mut SqliteConnection) -> Result<Option<i32>, sqlx::Error> {
    let tables: i64 = sqlx::query_scalar(include_str!("sql/table_exists.sql"))
        .bind("outbox_migration")
        .fetch_one(&mut *connection)
        .await?;
    if tables == 0 {
        return Ok(None);
    }
    sqlx::query_scalar(include_str!("sql/installed_version.sql")).fetch_one(connection).await
}

/// What becomes of a file that does not exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Missing {
    Create,
    Fail,
}

/// Migrations are synced, so that what was reported as applied stays applied.
async fn connect(config: &SqliteConfig, missing: Missing) -> Result<SqliteConnection, MigrateError> {
    options(config)
        .filename(&config.path)
        .create_if_missing(missing == Missing::Create)
        .synchronous(sqlx::sqlite::SqliteSynchronous::Full)
        .connect()
        .await
        .map_err(database(format!("open the database file {}", config.path.display())))
}

/// What was done is done, whether or not the connection closes well.
async fn close(connection: SqliteConnection) {
    if let Err(error) = connection.close().await {
        tracing::debug!(target: "outboxd::migrate", %error, "a session did not close well");
    }
}

/// The encoding cannot be changed in a file that holds anything, and the journal mode cannot be changed in a transaction.
async fn prepare(connection: &mut SqliteConnection) -> Result<(), MigrateError> {
    let failed = || database("prepare the database file");
    let encoding: String =
        sqlx::query_scalar("pragma encoding").fetch_one(&mut *connection).await.map_err(failed())?;
    if encoding != "UTF-8" {
        return Err(MigrateError::Encoding { encoding });
    }
    let mode: String =
        sqlx::query_scalar("pragma journal_mode = wal").fetch_one(connection).await.map_err(failed())?;
    if mode == "wal" { Ok(()) } else { Err(MigrateError::JournalMode { mode }) }
}

/// Applied migrations with their checksums, which are missing where another tool applied the file.
async fn applied(
    connection: &mut SqliteConnection,
    series: Series,
) -> Result<Vec<(i32, Option<String>)>, sqlx::Error> {
    let tables: i64 = sqlx::query_scalar(include_str!("sql/table_exists.sql"))
        .bind(series.table())
        .fetch_one(&mut *connection)
        .await?;
    if tables == 0 {
        return Ok(Vec::new());
    }
    let rows = sqlx::query(series.applied_sql()).fetch_all(connection).await?;
    rows.iter().map(|row| Ok((row.try_get("version")?, row.try_get("checksum")?))).collect()
}

/// Which migrations are still to be applied.
fn compare(applied: &[(i32, Option<String>)], series: Series) -> Result<Vec<Migration>, MigrateError> {
    let migrations = series.migrations();
    for (version, checksum) in applied {
        let Some(known) = migrations.iter().find(|migration| migration.version == *version) else {
            return Err(MigrateError::Newer {
                installed: *version,
                known: migrations.last().map_or(0, |last| last.version),
            });
        };
        if let Some(applied) = checksum
            && *applied != known.checksum()
        {
            return Err(MigrateError::Changed {
                version: *version,
                applied: applied.clone(),
                known: known.checksum(),
            });
        }
    }
    let is_applied = |version| applied.iter().any(|(applied, _)| *applied == version);
    Ok(migrations.iter().filter(|migration| !is_applied(migration.version)).copied().collect())
}
