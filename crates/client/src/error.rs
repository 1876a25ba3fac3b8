//! Why an intent was not written or a message not claimed.

/// What went wrong. After any of these the transaction is the caller's to roll back; PostgreSQL accepts nothing else in it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The intent says neither what its payload is nor that it is a tombstone.
    #[error("emit intent: it has no payload; call payload_json, payload_text, payload_bytes or tombstone")]
    Incomplete,
    /// The payload has no JSON form.
    #[error("write payload as JSON")]
    Payload {
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
    /// The database refuses what was given: a bad intent, or a claim without a consumer. It will be refused again.
    #[error("{problem}{}", .hint.as_ref().map(|hint| format!(": {hint}")).unwrap_or_default())]
    Refused {
        /// What is wrong with it, in the database's words.
        problem: String,
        /// What to do about it, in the database's words.
        hint: Option<String>,
        /// The cause.
        #[source]
        source: Box<sqlx::Error>,
    },
    /// There is no outbox or inbox there, or an older one than this call needs.
    #[error("{doing}: {place} holds no {what} that can do this; let its owner run `{command}`")]
    NotInstalled {
        /// What was being done.
        doing: &'static str,
        /// Outbox or inbox.
        what: &'static str,
        /// The schema, or the database file.
        place: String,
        /// What installs it or brings it up to date.
        command: String,
        /// The cause.
        #[source]
        source: Box<sqlx::Error>,
    },
    /// The role of this connection lacks a right.
    #[cfg(feature = "postgres")]
    #[error("{doing}: the role of this connection may not; let the owner of schema {schema} run `{command}`")]
    NotGranted {
        /// What was being done.
        doing: &'static str,
        /// The schema.
        schema: String,
        /// What grants it.
        command: String,
        /// The cause.
        #[source]
        source: Box<sqlx::Error>,
    },
    /// Another transaction was in the way: serialization failure, deadlock, or a busy SQLite file. Roll back and run the whole
    /// transaction again.
    #[error("{doing}: another transaction was in the way; roll back and try again")]
    Conflict {
        /// What was being done.
        doing: &'static str,
        /// The cause.
        #[source]
        source: Box<sqlx::Error>,
    },
    /// Everything else that a database or the way to it answers.
    #[error("{doing}")]
    Database {
        /// What was being done.
        doing: &'static str,
        /// The cause.
        #[source]
        source: Box<sqlx::Error>,
    },
}

/// How the database's own refusals of an intent or a claim begin.
pub(crate) fn is_refusal(message: &str) -> bool {
    message.starts_with("outbox refuses") || message.starts_with("inbox refuses")
}
