//! The one place that talks to SQLite: a session, its deadline, and what becomes of it afterwards.
//!
//! A session is lent to one call at a time. It comes back only from a call that ended well; after an error, a missed
//! deadline or a dropped future it is closed, which rolls back whatever it had begun. So a call that is given up half-way
//! costs its session and nothing else.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use outboxd_engine::OutboxError;
use sqlx::sqlite::{SqliteConnectOptions, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, SqliteConnection};
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::{error::Elapsed, timeout};

use crate::config::SqliteConfig;
use crate::file::DatabaseFile;

/// Why work on a session failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// SQLite said so.
    Database(sqlx::Error),
    /// It worked, and what was found is an error of the port.
    Outbox(OutboxError),
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error)
    }
}

impl From<OutboxError> for Failure {
    fn from(error: OutboxError) -> Self {
        Self::Outbox(error)
    }
}

/// The database took longer than a call may.
#[derive(Debug, thiserror::Error)]
#[error("no answer within {0:?}")]
struct TooLate(Duration);

/// The file cannot be looked up.
#[derive(Debug, thiserror::Error)]
#[error("{}{}", .path.display(), if .source.kind() == io::ErrorKind::NotFound { " (`outboxd migrate` creates it)" } else { "" })]
struct NoFile {
    path: PathBuf,
    source: io::Error,
}

/// A file that SQLite does not open.
#[derive(Debug, thiserror::Error)]
#[error("{}", .path.display())]
struct NotOpened {
    path: PathBuf,
    source: sqlx::Error,
}

/// The file is not the one that the term began with.
#[derive(Debug, thiserror::Error)]
#[error("another file has taken the place of the database file")]
struct Replaced;

/// A connection that is opened when it is needed.
#[derive(Debug, Default)]
pub(crate) struct Session {
    slot: Mutex<Option<Open>>,
}

#[derive(Debug)]
struct Open {
    connection: SqliteConnection,
    file: DatabaseFile,
}

/// A session in use.
#[derive(Debug)]
pub(crate) struct Lent<'session> {
    slot: MutexGuard<'session, Option<Open>>,
    open: Open,
    deadline: Duration,
}

impl Session {
    /// Lends the session, opening it if need be. With `term_file`, only on that file.
    pub(crate) async fn lend(
        &self,
        config: &SqliteConfig,
        doing: &'static str,
        term_file: Option<&DatabaseFile>,
    ) -> Result<Lent<'_>, OutboxError> {
        let lending = async {
            let mut slot = self.slot.lock().await;
            let file = locate(config)?;
            if term_file.is_some_and(|term_file| *term_file != file) {
                return Err(OutboxError::unavailable(doing, Replaced));
            }
            let open = match slot.take() {
                Some(open) if open.file == file => open,
                Some(_) | None => open(config, file).await?,
            };
            Ok(Lent { slot, open, deadline: config.deadline })
        };
        timeout(config.deadline, lending)
            .await
            .unwrap_or_else(|Elapsed { .. }| Err(OutboxError::unavailable(doing, TooLate(config.deadline))))
    }

    /// Lends the session if it is open, on that file still; `None` if it is not.
    pub(crate) async fn lend_open(
        &self,
        config: &SqliteConfig,
        doing: &'static str,
        term_file: &DatabaseFile,
    ) -> Result<Option<Lent<'_>>, OutboxError> {
        let locked = timeout(config.deadline, self.slot.lock()).await;
        let Ok(mut slot) = locked else {
            return Err(OutboxError::unavailable(doing, TooLate(config.deadline)));
        };
        let Some(open) = slot.take() else { return Ok(None) };
        let file = locate(config)?;
        if file != *term_file || open.file != *term_file {
            return Err(OutboxError::unavailable(doing, Replaced));
        }
        Ok(Some(Lent { slot, open, deadline: config.deadline }))
    }

    /// Closes it; what does not close in time is dropped.
    pub(crate) async fn close(&self, deadline: Duration) {
        let closing = async {
            let open = self.slot.lock().await.take();
            if let Some(open) = open
                && let Err(error) = open.connection.close().await
            {
                tracing::debug!(target: "outboxd::lead", %error, "a session did not close well");
            }
        };
        if timeout(deadline, closing).await.is_err() {
            tracing::debug!(target: "outboxd::lead", "a session did not close in time");
        }
    }
}

impl Lent<'_> {
    pub(crate) fn connection(&mut self) -> &mut SqliteConnection {
        &mut self.open.connection
    }

    pub(crate) fn file(&self) -> &DatabaseFile {
        &self.open.file
    }

    /// How long the work may take: to be given to [`timeout`] around it.
    pub(crate) fn deadline(&self) -> Duration {
        self.deadline
    }

    /// Takes the session back if the work ended well, and says what its failure means if it did not.
    pub(crate) fn finish<T>(
        mut self,
        doing: &'static str,
        outcome: Result<Result<T, Failure>, Elapsed>,
    ) -> Result<T, OutboxError> {
        match outcome {
            Ok(Ok(value)) => {
                *self.slot = Some(self.open);
                Ok(value)
            }
            Ok(Err(Failure::Database(error))) => Err(OutboxError::unavailable(doing, error)),
            Ok(Err(Failure::Outbox(error))) => Err(error),
            Err(_) => Err(OutboxError::unavailable(doing, TooLate(self.deadline))),
        }
    }
}

/// Looks the configured file up.
fn locate(config: &SqliteConfig) -> Result<DatabaseFile, OutboxError> {
    DatabaseFile::locate(&config.path).map_err(|source| {
        // Whole, because the usual mistake is another working directory.
        let path = std::path::absolute(&config.path).unwrap_or_else(|_| config.path.clone());
        OutboxError::unavailable("find the database file", NoFile { path, source })
    })
}

/// Opens a connection and makes sure that it is on the file that was looked up.
async fn open(config: &SqliteConfig, file: DatabaseFile) -> Result<Open, OutboxError> {
    const DOING: &str = "open the database file";
    let connection =
        options(config).filename(file.path()).connect().await.map_err(|source| {
            OutboxError::unavailable(DOING, NotOpened { path: config.path.clone(), source })
        })?;
    let now = locate(config)?;
    if now == file { Ok(Open { connection, file }) } else { Err(OutboxError::unavailable(DOING, Replaced)) }
}

/// How every session is opened. `synchronous=NORMAL`: a settle that a power loss takes back costs duplicates only, and its
/// fsync would be the application's wait. Temporary results stay in memory, so that a read-only root file system will do.
pub(crate) fn options(config: &SqliteConfig) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .create_if_missing(false)
        .busy_timeout(config.busy_timeout())
        .synchronous(SqliteSynchronous::Normal)
        .pragma("temp_store", "memory")
        .thread_name(|id| format!("outbox-sqlite-{id}"))
        .disable_statement_logging()
}
