//! The preflight: what could keep the relay from serving this file, each finding with its remedy.

use outboxd_engine::{Finding, OutboxError, Severity};
use sqlx::{Connection, Row, SqliteConnection};
use tokio::time::timeout;

use crate::file::DatabaseFile;
use crate::lead::sequence_finding;
use crate::migrate::{SCHEMA_VERSION, SCHEMA_VERSION_MIN, TRACE_INDEXES, missing_trace_indexes, version_of};
use crate::operator::SqliteOperator;
use crate::session::Failure;

/// The triggers that guard intents, as the migration creates them.
const TRIGGERS: [&str; 4] = [
    "outbox_message_keep_content",
    "outbox_message_keep_seq",
    "outbox_message_keep_undelivered",
    "outbox_message_refuse",
];

/// A WAL of this size was not checkpointed for a long time.
const WAL_BYTES_MAX: u64 = 256 << 20;

impl SqliteOperator {
    pub(crate) async fn findings(&self) -> Result<Vec<Finding>, OutboxError> {
        const DOING: &str = "check the database";
        let mut lent = self.session.lend(&self.config, DOING, None).await?;
        let file = lent.file().clone();
        let outcome = timeout(lent.deadline(), findings(lent.connection(), &file)).await;
        lent.finish(DOING, outcome)
    }
}

async fn findings(connection: &mut SqliteConnection, file: &DatabaseFile) -> Result<Vec<Finding>, Failure> {
    let mut findings = Vec::new();
    let version: String = sqlx::query_scalar("select sqlite_version()").fetch_one(&mut *connection).await?;
    findings.push(ok("sqlite version", format!("{version}, built into the relay")));
    findings.push(encoding(connection).await?);
    findings.push(journal_mode(connection).await?);
    findings.push(wal_size(file));
    let (installed, finding) = schema_version(connection).await?;
    findings.push(finding);
    if installed {
        findings.push(sequence(connection).await?);
        findings.push(triggers(connection).await?);
        findings.push(trace_indexes(connection).await?);
        findings.push(leader(connection).await?);
    }
    findings.push(write_lock(connection).await);
    Ok(findings)
}

fn ok(check: &str, found: String) -> Finding {
    Finding { check: check.to_owned(), severity: Severity::Ok, found, remedy: String::new() }
}

fn not_ok(check: &str, severity: Severity, found: String, remedy: impl Into<String>) -> Finding {
    Finding { check: check.to_owned(), severity, found, remedy: remedy.into() }
}

async fn encoding(connection: &mut SqliteConnection) -> Result<Finding, Failure> {
    const CHECK: &str = "encoding";
    let encoding: String = sqlx::query_scalar("pragma encoding").fetch_one(connection).await?;
    Ok(if encoding == "UTF-8" {
        ok(CHECK, encoding)
    } else {
        not_ok(CHECK, Severity::Error, encoding, "put the outbox in a database whose encoding is UTF-8")
    })
}

async fn journal_mode(connection: &mut SqliteConnection) -> Result<Finding, Failure> {
    const CHECK: &str = "journal mode";
    let mode: String = sqlx::query_scalar("pragma journal_mode").fetch_one(connection).await?;
    Ok(if mode == "wal" {
        ok(CHECK, mode)
    } else {
        not_ok(
            CHECK,
            Severity::Warning,
            format!("{mode}: the relay sets wal when it takes the lead"),
            "run `pragma journal_mode = wal`, on a local file system",
        )
    })
}

fn wal_size(file: &DatabaseFile) -> Finding {
    const CHECK: &str = "wal size";
    let bytes = std::fs::metadata(file.wal()).map_or(0, |metadata| metadata.len());
    if bytes <= WAL_BYTES_MAX {
        ok(CHECK, format!("{bytes} bytes"))
    } else {
        not_ok(
            CHECK,
            Severity::Warning,
            format!(
                "{bytes} bytes: something keeps a read transaction open, so that it is never checkpointed"
            ),
            "end long read transactions of the application",
        )
    }
}

async fn schema_version(connection: &mut SqliteConnection) -> Result<(bool, Finding), Failure> {
    const CHECK: &str = "schema version";
    let finding = match version_of(connection).await? {
        Some(version) if (SCHEMA_VERSION_MIN..=SCHEMA_VERSION).contains(&version) => {
            return Ok((true, ok(CHECK, version.to_string())));
        }
        Some(version) if version > SCHEMA_VERSION => not_ok(
            CHECK,
            Severity::Error,
            format!("{version}; this relay serves {SCHEMA_VERSION_MIN} to {SCHEMA_VERSION}"),
            "run a newer outboxd",
        ),
        Some(version) => not_ok(
            CHECK,
            Severity::Error,
            format!("{version}; this relay serves {SCHEMA_VERSION_MIN} to {SCHEMA_VERSION}"),
            "run `outboxd migrate`",
        ),
        None => not_ok(CHECK, Severity::Error, "no outbox".to_owned(), "run `outboxd migrate`"),
    };
    Ok((false, finding))
}

async fn sequence(connection: &mut SqliteConnection) -> Result<Finding, Failure> {
    const CHECK: &str = "sequence";
    Ok(match sequence_finding(connection).await? {
        None => ok(CHECK, "AUTOINCREMENT, at or above the cursor".to_owned()),
        Some((found, remedy)) => not_ok(CHECK, Severity::Error, found, remedy),
    })
}

async fn triggers(connection: &mut SqliteConnection) -> Result<Finding, Failure> {
    const CHECK: &str = "triggers";
    let found: Vec<String> =
        sqlx::query_scalar(include_str!("sql/triggers.sql")).fetch_all(connection).await?;
    let missing: Vec<&str> =
        TRIGGERS.into_iter().filter(|trigger| !found.iter().any(|name| name == trigger)).collect();
    Ok(if missing.is_empty() {
        ok(CHECK, "all four guard the intents".to_owned())
    } else {
        not_ok(
            CHECK,
            Severity::Error,
            format!("missing: {}", missing.join(", ")),
            "create them again as migrations/sqlite has them",
        )
    })
}

/// The optional indexes: an outbox without them is as good.
async fn trace_indexes(connection: &mut SqliteConnection) -> Result<Finding, Failure> {
    const CHECK: &str = "trace indexes";
    let missing = missing_trace_indexes(connection).await?;
    Ok(ok(
        CHECK,
        match missing.len() {
            0 => "all are there".to_owned(),
            all if all == TRACE_INDEXES.len() => {
                "none; they are optional, and `outboxd migrate trace-indexes` builds them".to_owned()
            }
            _some => {
                format!("not there: {}; `outboxd migrate trace-indexes` builds them", missing.join(", "))
            }
        },
    ))
}

async fn leader(connection: &mut SqliteConnection) -> Result<Finding, Failure> {
    const CHECK: &str = "leader";
    let row = sqlx::query(include_str!("sql/status.sql")).fetch_one(connection).await?;
    let relay: Option<String> = row.try_get("relay")?;
    let alive: bool = row.try_get("alive")?;
    let epoch: i64 = row.try_get("epoch")?;
    Ok(match relay {
        Some(relay) if alive => ok(CHECK, format!("{relay} leads, epoch {epoch}")),
        Some(relay) => ok(CHECK, format!("nobody leads; {relay} did last, epoch {epoch}")),
        None => ok(CHECK, "nobody has led yet".to_owned()),
    })
}

/// Whether the application lets others write.
async fn write_lock(connection: &mut SqliteConnection) -> Finding {
    const CHECK: &str = "write lock";
    let taken = async { connection.begin_with("begin immediate").await?.rollback().await };
    match taken.await {
        Ok(()) => ok(CHECK, "free".to_owned()),
        Err(error) => not_ok(
            CHECK,
            Severity::Warning,
            error.to_string(),
            "end long write transactions of the application; make sure that the relay may write the file and its directory",
        ),
    }
}
