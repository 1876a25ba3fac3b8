//! Outbox and inbox in a SQLite file.

use std::time::Duration;

use sqlx::{Sqlite, SqliteConnection, Transaction};
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use time::{OffsetDateTime, UtcOffset};
use uuid::Uuid;

use crate::delivery::{Claim, Delivery};
use crate::error::{Error, is_refusal};
use crate::intent::Intent;

const EMIT: &str = "emit intent";
const CANCEL: &str = "cancel intent";
const CLAIM: &str = "claim message";
const PURGE: &str = "purge inbox";

/// As the database writes times: RFC 3339 in UTC, milliseconds.
const TIME: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");

/// SQL that installs the inbox, by version, for applications that migrate their file themselves. Each is executed once, in a
/// transaction. `outboxd migrate --inbox` does the same.
pub const INBOX_MIGRATIONS: [&str; 1] = [include_str!("../../../migrations/inbox/sqlite/0001_inbox.sql")];

/// Where intents are written: the tables `outbox_*` that `outboxd migrate` installed in the file.
#[derive(Clone, Copy, Debug)]
pub struct Outbox;

impl Outbox {
    /// Writes an intent in the transaction that the connection is in, and returns its message id. It is published once that
    /// transaction has committed, and never if it rolls back. A connection that is in no transaction commits it at once.
    ///
    /// What the intent does not set comes from the [`Context`](crate::Context), else the correlation id is a fresh one.
    ///
    /// # Errors
    /// [`Error::Refused`] if the intent is bad, [`Error::NotInstalled`], [`Error::Conflict`] if the file is busy,
    /// [`Error::Incomplete`], [`Error::Database`].
    pub async fn emit(&self, connection: &mut SqliteConnection, intent: &Intent) -> Result<Uuid, Error> {
        let payload = intent.payload()?;
        let context = intent.context.or_current();
        let headers = if intent.headers.is_empty() {
            None
        } else {
            Some(serde_json::to_string(&intent.headers).map_err(|source| Error::Payload { source })?)
        };
        let failed = |source| failed("outbox", "outboxd migrate", EMIT, source);
        let written: Option<String> = sqlx::query_scalar(include_str!("sql/sqlite_emit.sql"))
            .bind(&intent.topic)
            .bind(payload)
            .bind(&intent.key)
            .bind(headers)
            .bind(intent.partition)
            .bind(&intent.content_type)
            .bind(context.correlation_id)
            .bind(context.causation_id)
            .bind(context.traceparent)
            .bind(context.tracestate)
            .bind(intent.id.map(|id| id.to_string()))
            .bind(intent.deliver_after.map(written))
            .bind(&intent.idempotency_key)
            .fetch_optional(&mut *connection)
            .await
            .map_err(failed)?;
        let id = match written {
            Some(id) => id,
            None => sqlx::query_scalar(include_str!("sql/sqlite_emitted.sql"))
                .bind(&intent.idempotency_key)
                .fetch_one(connection)
                .await
                .map_err(failed)?,
        };
        Uuid::try_parse(&id).map_err(|source| Error::Database {
            doing: EMIT,
            source: Box::new(sqlx::Error::Decode(source.into())),
        })
    }

    /// Takes a scheduled intent back, in the transaction that the connection is in: true if it is not delivered, provided that
    /// this commits before its time; false if there is no scheduled intent of this id, or its time has come.
    ///
    /// # Errors
    /// As [`Outbox::emit`].
    pub async fn cancel(
        &self,
        connection: &mut SqliteConnection,
        id: Uuid,
        why: &str,
    ) -> Result<bool, Error> {
        let cancelled = sqlx::query(include_str!("sql/sqlite_cancel.sql"))
            .bind(id.to_string())
            .bind(why)
            .execute(connection)
            .await;
        match cancelled.map_err(|source| failed("outbox", "outboxd migrate", CANCEL, source)) {
            Ok(_) => Ok(true),
            Err(Error::Refused { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// What one consumer has handled: the tables `inbox_*` that `outboxd migrate --inbox` installed in the file in which the
/// consumer's handlers write.
#[derive(Clone, Debug)]
pub struct Inbox {
    consumer: String,
}

impl Inbox {
    /// The inbox of this consumer. Its name stays the same from release to release: under another name every message is
    /// fresh. Usually it is the name of the consumer group.
    #[must_use]
    pub fn of(consumer: impl Into<String>) -> Self {
        Self { consumer: consumer.into() }
    }

    /// Claims a message in the transaction in which it is handled: the claim lasts if that commits. SQLite has one writer, so
    /// this waits for every other writing transaction.
    ///
    /// Claim first, then handle: a transaction that has read and then wants to write fails if another wrote in between. Roll back on
    /// any error, also the handler's, or the message counts as handled.
    ///
    /// # Errors
    /// [`Error::Conflict`] if the file is busy: roll back and try again. Else [`Error::NotInstalled`], [`Error::Database`].
    pub async fn claim(
        &self,
        transaction: &mut Transaction<'_, Sqlite>,
        delivery: &Delivery,
    ) -> Result<Claim, Error> {
        let failed = |source| failed("inbox", "outboxd migrate --inbox", CLAIM, source);
        let id = delivery.id.to_string();
        let place = delivery.place.as_ref();
        let claimed = sqlx::query(include_str!("sql/sqlite_claim.sql"))
            .bind(&self.consumer)
            .bind(&id)
            .bind(place.map(|place| &place.topic))
            .bind(place.map(|place| place.partition))
            .bind(place.map(|place| place.offset))
            .bind(&delivery.context.correlation_id)
            .execute(&mut **transaction)
            .await
            .map_err(failed)?;
        if claimed.rows_affected() > 0 {
            return Ok(Claim::Fresh);
        }
        sqlx::query(include_str!("sql/sqlite_duplicate.sql"))
            .bind(&self.consumer)
            .bind(&id)
            .execute(&mut **transaction)
            .await
            .map_err(failed)?;
        Ok(Claim::Duplicate)
    }

    /// Forgets messages of every consumer that were handled longer ago than `older_than`, at most `rows` of them, and says how
    /// many.
    ///
    /// A copy that comes after its message was forgotten takes effect again, so keep more than the retention of the topics and
    /// than the time for which somebody may replay. A message of which a copy came since then is kept.
    ///
    /// # Errors
    /// As [`Inbox::claim`].
    pub async fn purge(
        &self,
        connection: &mut SqliteConnection,
        older_than: Duration,
        rows: u32,
    ) -> Result<u64, Error> {
        let purged = sqlx::query(include_str!("sql/sqlite_purge.sql"))
            .bind(format!("{:.3}", older_than.as_secs_f64()))
            .bind(rows)
            .execute(connection)
            .await
            .map_err(|source| failed("inbox", "outboxd migrate --inbox", PURGE, source))?;
        Ok(purged.rows_affected())
    }
}

/// Rounded up to the millisecond: never before its time.
fn written(time: OffsetDateTime) -> String {
    let up = time.to_offset(UtcOffset::UTC).saturating_add(time::Duration::nanoseconds(999_999));
    up.format(TIME).unwrap_or_else(|_| unreachable!("every time has these parts"))
}

fn failed(what: &'static str, command: &str, doing: &'static str, source: sqlx::Error) -> Error {
    let Some(answer) = source.as_database_error() else {
        return Error::Database { doing, source: Box::new(source) };
    };
    let message = answer.message();
    if is_refusal(message) {
        return Error::Refused { problem: message.to_owned(), hint: None, source: Box::new(source) };
    }
    // SQLite has one code for everything that is wrong with a statement; its texts are stable.
    if message.starts_with("no such table") || message.contains("has no column named") {
        let (place, command) = ("the database file".to_owned(), command.to_owned());
        return Error::NotInstalled { doing, what, place, command, source: Box::new(source) };
    }
    // The lower byte is the kind: SQLITE_BUSY, SQLITE_LOCKED.
    let code = answer.code().and_then(|code| code.parse::<i32>().ok()).unwrap_or_default();
    match code & 0xff {
        5 | 6 => Error::Conflict { doing, source: Box::new(source) },
        _ => Error::Database { doing, source: Box::new(source) },
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn a_time_is_written_in_utc_and_never_earlier_than_it_is() {
        assert_eq!(written(datetime!(2026-01-02 04:04:05.678 +1)), "2026-01-02T03:04:05.678Z");
        assert_eq!(written(datetime!(2026-01-02 03:04:05.678_000_001 UTC)), "2026-01-02T03:04:05.679Z");
        assert_eq!(written(datetime!(2026-01-02 03:04:59.999_999_999 UTC)), "2026-01-02T03:05:00.000Z");
    }
}
