//! Outbox and inbox in PostgreSQL.

use std::time::Duration;

use sqlx::postgres::PgDatabaseError;
use sqlx::types::Json;
use sqlx::{PgConnection, Postgres, SqlStr, Transaction};
use uuid::Uuid;

use crate::delivery::{Claim, Delivery};
use crate::error::{Error, is_refusal};
use crate::intent::Intent;
use crate::schema::SchemaName;
pub use crate::schema::SchemaNameError;

const EMIT: &str = "emit intent";
const CANCEL: &str = "cancel intent";
const CLAIM: &str = "claim message";
const PURGE: &str = "purge inbox";

/// SQL that installs the inbox into schema `inbox`, by version, for applications that migrate their database themselves. Each is
/// executed once, in a transaction. `outboxd migrate --inbox` does the same, also for other schemas.
pub const INBOX_MIGRATIONS: [&str; 1] = [include_str!("../../../migrations/inbox/postgres/0001_inbox.sql")];

/// Where intents are written: a schema that `outboxd migrate` installed. Cheap to clone; make one and keep it.
#[derive(Clone, Debug)]
pub struct Outbox {
    schema: SchemaName,
    emit: SqlStr,
    cancel: SqlStr,
}

impl Outbox {
    /// The outbox in schema `outbox`.
    #[must_use]
    pub fn new() -> Self {
        Self::at(SchemaName::default_of("outbox"))
    }

    /// The outbox in another schema.
    ///
    /// # Errors
    /// [`SchemaNameError`].
    pub fn in_schema(schema: &str) -> Result<Self, SchemaNameError> {
        Ok(Self::at(SchemaName::validated(schema)?))
    }

    fn at(schema: SchemaName) -> Self {
        Self {
            emit: schema.statement(include_str!("sql/emit.sql"), "outbox"),
            cancel: schema.statement(include_str!("sql/cancel.sql"), "outbox"),
            schema,
        }
    }

    /// Writes an intent in the transaction that the connection is in, and returns its message id. It is published once that
    /// transaction has committed, and never if it rolls back. A connection that is in no transaction commits it at once.
    ///
    /// What the intent does not set comes from the [`Context`](crate::Context), else from the transaction's settings
    /// (`outbox.correlation_id` and so on), else the correlation id is a fresh one.
    ///
    /// Lock what changes first, then emit: two intents of one key keep their order when the second is emitted after the first has
    /// committed.
    ///
    /// # Errors
    /// [`Error::Refused`] if the intent is bad, [`Error::NotInstalled`], [`Error::NotGranted`], [`Error::Conflict`] where
    /// another transaction emits the same idempotency key, [`Error::Incomplete`], [`Error::Database`].
    pub async fn emit(&self, connection: &mut PgConnection, intent: &Intent) -> Result<Uuid, Error> {
        let payload = intent.payload()?;
        let context = intent.context.or_current();
        let headers = (!intent.headers.is_empty()).then_some(Json(&intent.headers));
        sqlx::query_scalar(self.emit.clone())
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
            .bind(intent.id)
            .bind(intent.deliver_after)
            .bind(&intent.idempotency_key)
            .fetch_one(connection)
            .await
            .map_err(|source| self.failed(EMIT, source))
    }

    /// Takes a scheduled intent back, in the transaction that the connection is in: true if it is not delivered, provided that
    /// this commits before its time; false if there is no scheduled intent of this id, or its time has come.
    ///
    /// # Errors
    /// As [`Outbox::emit`].
    pub async fn cancel(&self, connection: &mut PgConnection, id: Uuid, why: &str) -> Result<bool, Error> {
        sqlx::query_scalar(self.cancel.clone())
            .bind(id)
            .bind(why)
            .fetch_one(connection)
            .await
            .map_err(|source| self.failed(CANCEL, source))
    }

    fn failed(&self, doing: &'static str, source: sqlx::Error) -> Error {
        let command = |command: &str| own_schema(command, self.schema.as_str(), "outbox");
        let place = Place { what: "outbox", schema: self.schema.as_str() };
        place.failed(
            doing,
            source,
            command("outboxd migrate"),
            command("outboxd migrate grants --writer ROLE"),
        )
    }
}

impl Default for Outbox {
    fn default() -> Self {
        Self::new()
    }
}

/// What one consumer has handled: a schema that `outboxd migrate --inbox` installed, in the database in which the consumer's
/// handlers write. Cheap to clone; make one and keep it.
#[derive(Clone, Debug)]
pub struct Inbox {
    consumer: String,
    schema: SchemaName,
    claim: SqlStr,
    purge: SqlStr,
}

impl Inbox {
    /// The inbox of this consumer in schema `inbox`. Its name stays the same from release to release: under another name every
    /// message is fresh. Usually it is the name of the consumer group.
    #[must_use]
    pub fn of(consumer: impl Into<String>) -> Self {
        Self::at(consumer.into(), SchemaName::default_of("inbox"))
    }

    /// The inbox of this consumer in another schema.
    ///
    /// # Errors
    /// [`SchemaNameError`].
    pub fn in_schema(consumer: impl Into<String>, schema: &str) -> Result<Self, SchemaNameError> {
        Ok(Self::at(consumer.into(), SchemaName::validated(schema)?))
    }

    fn at(consumer: String, schema: SchemaName) -> Self {
        Self {
            consumer,
            claim: schema.statement(include_str!("sql/claim.sql"), "inbox"),
            purge: schema.statement(include_str!("sql/purge.sql"), "inbox"),
            schema,
        }
    }

    /// Claims a message in the transaction in which it is handled: the claim lasts if that commits. While another transaction
    /// claims the same message this waits for its end.
    ///
    /// Claim first, then handle. Roll back on any error, also the handler's, or the message counts as handled.
    ///
    /// # Errors
    /// [`Error::Conflict`] if another transaction was in the way: under REPEATABLE READ and SERIALIZABLE that is also one that
    /// has handled this message. Roll back and try again. Else [`Error::NotInstalled`], [`Error::NotGranted`],
    /// [`Error::Refused`], [`Error::Database`].
    pub async fn claim(
        &self,
        transaction: &mut Transaction<'_, Postgres>,
        delivery: &Delivery,
    ) -> Result<Claim, Error> {
        let place = delivery.place.as_ref();
        let fresh: bool = sqlx::query_scalar(self.claim.clone())
            .bind(&self.consumer)
            .bind(delivery.id)
            .bind(place.map(|place| &place.topic))
            .bind(place.map(|place| place.partition))
            .bind(place.map(|place| place.offset))
            .bind(&delivery.context.correlation_id)
            .fetch_one(&mut **transaction)
            .await
            .map_err(|source| self.failed(CLAIM, source))?;
        Ok(if fresh { Claim::Fresh } else { Claim::Duplicate })
    }

    /// Forgets messages of every consumer that were handled longer ago than `older_than`, at most `rows` of them, and says how many.
    /// Run it from time to time until it says less than `rows`.
    ///
    /// A copy that comes after its message was forgotten takes effect again, so keep more than the retention of the topics and
    /// than the time for which somebody may replay. A message of which a copy came since then is kept.
    ///
    /// # Errors
    /// As [`Inbox::claim`].
    pub async fn purge(
        &self,
        connection: &mut PgConnection,
        older_than: Duration,
        rows: i32,
    ) -> Result<u64, Error> {
        let microseconds = i64::try_from(older_than.as_micros()).unwrap_or(i64::MAX / 2);
        let forgotten: i64 = sqlx::query_scalar(self.purge.clone())
            .bind(microseconds)
            .bind(rows)
            .fetch_one(connection)
            .await
            .map_err(|source| self.failed(PURGE, source))?;
        Ok(forgotten.unsigned_abs())
    }

    fn failed(&self, doing: &'static str, source: sqlx::Error) -> Error {
        let command = |command: &str| own_schema(command, self.schema.as_str(), "inbox");
        let place = Place { what: "inbox", schema: self.schema.as_str() };
        let (install, grant) = ("outboxd migrate --inbox", "outboxd migrate grants --consumer ROLE");
        place.failed(doing, source, command(install), command(grant))
    }
}

/// The command as it has to be typed for a schema that is not the default.
fn own_schema(command: &str, schema: &str, default: &str) -> String {
    if schema == default { command.to_owned() } else { format!("{command} --schema {schema}") }
}

struct Place<'a> {
    what: &'static str,
    schema: &'a str,
}

impl Place<'_> {
    fn failed(self, doing: &'static str, source: sqlx::Error, install: String, grant: String) -> Error {
        let Some(answer) = source.as_database_error() else {
            return Error::Database { doing, source: Box::new(source) };
        };
        if is_refusal(answer.message()) {
            let problem = answer.message().to_owned();
            let hint = answer.try_downcast_ref::<PgDatabaseError>().and_then(PgDatabaseError::hint);
            return Error::Refused { problem, hint: hint.map(str::to_owned), source: Box::new(source) };
        }
        match answer.code().as_deref() {
            // No such schema, function, table, column.
            Some("3F000" | "42883" | "42P01" | "42703") => Error::NotInstalled {
                doing,
                what: self.what,
                place: format!("schema {}", self.schema),
                command: install,
                source: Box::new(source),
            },
            Some("42501") => Error::NotGranted {
                doing,
                schema: self.schema.to_owned(),
                command: grant,
                source: Box::new(source),
            },
            // Serialization failure, deadlock.
            Some("40001" | "40P01") => Error::Conflict { doing, source: Box::new(source) },
            _ => Error::Database { doing, source: Box::new(source) },
        }
    }
}
