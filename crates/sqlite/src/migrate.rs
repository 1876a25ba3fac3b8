//! Migrations: numbered, forward only, each applied once in a transaction of its own.
//!
//! The files in `migrations/sqlite` also work with the sqlite3 command line: each enters itself into `outbox_migration`, and
//! what is applied here gets its checksum there as well. The table is ours: an application that uses a migration tool of its
//! own does not see it.

use std::fmt::Write as _;

use outboxd_engine::OutboxError;
use sha2::{Digest, Sha256};
use sqlx::{ConnectOptions, Connection, Row, SqliteConnection};
use tokio::time::timeout;

use crate::config::SqliteConfig;
use crate::session::{Failure, Session, options};

/// The schema version that this version of the relay was built for.
pub const VERSION: i32 = 1;

/// The oldest schema version that it serves.
pub const VERSION_OLDEST: i32 = 1;

/// A numbered step of the outbox's schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Migration {
    /// Number, from 1 on.
    pub version: i32,
    /// Name, as in the file's.
    pub name: &'static str,
    /// The file.
    pub sql: &'static str,
}

/// Every migration, in order.
pub const MIGRATIONS: [Migration; 1] = [Migration {
    version: 1,
    name: "outbox",
    sql: include_str!("../../../migrations/sqlite/0001_outbox.sql"),
}];

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
    /// The database.
    #[error("{doing}")]
    Database {
        /// What was being done.
        doing: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
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
    #[error("the outbox has schema version {installed}, this version knows {known}: run a newer outboxd")]
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
    /// The file cannot be read and written by several processes at once.
    #[error("the database stays in journal mode {mode} instead of wal: put it on a local file system")]
    JournalMode {
        /// As SQLite names it.
        mode: String,
    },
}

impl MigrateError {
    fn database(
        doing: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Database { doing: doing.into(), source: source.into() }
    }
}

/// Which version is installed in the file; `None` if there is no outbox in it.
///
/// # Errors
/// [`OutboxError::Unavailable`] if the file is not there or cannot be read.
pub async fn installed_version(config: &SqliteConfig) -> Result<Option<i32>, OutboxError> {
    const DOING: &str = "read the schema version";
    let session = Session::default();
    let mut lent = session.lend(config, DOING, None).await?;
    let outcome = timeout(lent.deadline(), version_of(lent.connection())).await;
    let version = lent.finish(DOING, outcome);
    session.close(config.deadline).await;
    version
}

/// Which version is installed.
pub(crate) async fn version_of(connection: &mut SqliteConnection) -> Result<Option<i32>, Failure> {
    let tables: i64 = sqlx::query_scalar(include_str!("sql/table_exists.sql"))
        .bind("outbox_migration")
        .fetch_one(&mut *connection)
        .await?;
    if tables == 0 {
        return Ok(None);
    }
    Ok(sqlx::query_scalar(include_str!("sql/installed_version.sql")).fetch_one(connection).await?)
}

/// What [`migrate`] would apply, in order. The file need not exist, and is not created.
///
/// # Errors
/// [`MigrateError`]; also if an applied migration has changed.
pub async fn pending(config: &SqliteConfig) -> Result<Vec<Migration>, MigrateError> {
    const DOING: &str = "read the applied migrations";
    if !config.path.exists() {
        return Ok(MIGRATIONS.to_vec());
    }
    let mut connection = connect(config, Missing::Fail).await?;
    let applied = applied(&mut connection).await.map_err(|error| MigrateError::database(DOING, error))?;
    close(connection).await?;
    compare(&applied)
}

/// Brings the outbox to [`VERSION`], creating the file if there is none. Idempotent, and safe to run by several processes
/// at once: each migration takes the write lock and looks again. Returns what was applied.
///
/// # Errors
/// [`MigrateError`].
pub async fn migrate(config: &SqliteConfig) -> Result<Vec<Migration>, MigrateError> {
    let mut connection = connect(config, Missing::Create).await?;
    prepare(&mut connection).await?;
    let mut done = Vec::new();
    loop {
        let mut transaction = connection
            .begin_with("begin immediate")
            .await
            .map_err(|error| MigrateError::database("lock the database", error))?;
        let applied = applied(&mut transaction)
            .await
            .map_err(|error| MigrateError::database("read the applied migrations", error))?;
        let Some(next) = compare(&applied)?.first().copied() else { break };
        let failed = |error| MigrateError::database(format!("apply migration {}", next.version), error);
        sqlx::raw_sql(next.sql).execute(&mut *transaction).await.map_err(failed)?;
        sqlx::query("update outbox_migration set checksum = ?2, applied_by = ?3 where version = ?1")
            .bind(next.version)
            .bind(next.checksum())
            .bind(concat!("outboxd ", env!("CARGO_PKG_VERSION")))
            .execute(&mut *transaction)
            .await
            .map_err(failed)?;
        transaction.commit().await.map_err(failed)?;
        done.push(next);
    }
    close(connection).await?;
    Ok(done)
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
        .map_err(|error| MigrateError::database("open the database file", error))
}

async fn close(connection: SqliteConnection) -> Result<(), MigrateError> {
    connection.close().await.map_err(|error| MigrateError::database("close the database file", error))
}

/// The encoding cannot be changed in a file that holds anything, and the journal mode cannot be changed in a transaction.
async fn prepare(connection: &mut SqliteConnection) -> Result<(), MigrateError> {
    let failed = |error| MigrateError::database("prepare the database file", error);
    let encoding: String =
        sqlx::query_scalar("pragma encoding").fetch_one(&mut *connection).await.map_err(failed)?;
    if encoding != "UTF-8" {
        return Err(MigrateError::Encoding { encoding });
    }
    let mode: String =
        sqlx::query_scalar("pragma journal_mode = wal").fetch_one(connection).await.map_err(failed)?;
    if mode == "wal" { Ok(()) } else { Err(MigrateError::JournalMode { mode }) }
}

/// Applied migrations with their checksums, which are missing where another tool applied the file.
async fn applied(connection: &mut SqliteConnection) -> Result<Vec<(i32, Option<String>)>, sqlx::Error> {
    let tables: i64 = sqlx::query_scalar(include_str!("sql/table_exists.sql"))
        .bind("outbox_migration")
        .fetch_one(&mut *connection)
        .await?;
    if tables == 0 {
        return Ok(Vec::new());
    }
    let rows = sqlx::query("select version, checksum from outbox_migration order by version")
        .fetch_all(connection)
        .await?;
    rows.iter().map(|row| Ok((row.try_get("version")?, row.try_get("checksum")?))).collect()
}

/// Which migrations are still to be applied.
fn compare(applied: &[(i32, Option<String>)]) -> Result<Vec<Migration>, MigrateError> {
    for (version, checksum) in applied {
        let Some(known) = MIGRATIONS.iter().find(|migration| migration.version == *version) else {
            return Err(MigrateError::Newer { installed: *version, known: VERSION });
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
    Ok(MIGRATIONS.into_iter().filter(|migration| !is_applied(migration.version)).collect())
}
