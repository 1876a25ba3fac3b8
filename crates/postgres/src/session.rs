//! Sessions: the one way to the database.
//!
//! sqlx has no TCP keepalives and no deadline: on a black-holed link a query hangs for minutes. So every call is a
//! [`Call`], which has a deadline from the moment it owns its connection. The connection is taken out of the session
//! before the first statement and put back by [`Call::done`] alone: a call that fails, times out or is dropped half-way
//! closes its connection, and the next call makes a new one. There is no pool, hence no slot to leak.
//!
//! What a session is for decides its settings, which are set after connecting because poolers refuse unknown startup
//! options. This module knows nothing of the outbox's tables.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use outboxd_engine::OutboxError;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgRow, PgSslMode};
use sqlx::query::Query;
use sqlx::{ConnectOptions, Connection, Postgres, Row, SqlStr};
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::{Instant, timeout_at};

use crate::schema::SchemaName;

/// Oldest server that is served: `xid8` and `pg_snapshot` came with it.
const SERVER_VERSION_MIN: i32 = 130_000;

/// How long a session may take to say goodbye.
const CLOSE_WITHIN: Duration = Duration::from_secs(1);

/// What the adapter needs to know.
#[derive(Clone)]
pub struct PostgresConfig {
    options: PgConnectOptions,
    unverified_tls: bool,
    /// The schema that holds the outbox.
    pub schema: SchemaName,
    /// Name of this relay, as operators see it.
    pub relay: String,
    /// Longest that one call may take, connecting included.
    pub deadline: Duration,
    /// How long the database keeps the lead of a relay that has stopped answering.
    pub lead_session: Duration,
}

/// The connection URL cannot be used. The text shows no part of it.
#[derive(Debug, thiserror::Error)]
pub enum UrlError {
    /// Not a URL, or a parameter of it is wrong.
    #[error(
        "database url is not valid: expected postgres://user:password@host:port/database?sslmode=verify-full"
    )]
    Invalid,
    /// Another database.
    #[error("database url does not start with postgres:// or postgresql://")]
    Scheme,
}

impl PostgresConfig {
    /// Reads a `postgres://` URL. Neither `.pgpass` nor `PGPASSWORD` is looked at. TLS is `verify-full` unless the address
    /// is loopback or a socket or the URL names another `sslmode`.
    ///
    /// # Errors
    /// [`UrlError`], without the URL: it holds a password.
    pub fn from_url(url: &str, schema: SchemaName, relay: impl Into<String>) -> Result<Self, UrlError> {
        let after_scheme = ["postgres://", "postgresql://"]
            .iter()
            .find_map(|scheme| url.strip_prefix(scheme))
            .ok_or(UrlError::Scheme)?;
        let query = after_scheme.split_once('?').map_or("", |(_, query)| query);
        let names = |wanted: &[&str]| {
            query.split('&').any(|pair| wanted.contains(&pair.split('=').next().unwrap_or_default()))
        };
        // An empty password in the URL keeps sqlx from looking for one in the environment and in ~/.pgpass.
        let authority = after_scheme.split(['/', '?']).next().unwrap_or_default();
        let has_password = names(&["password"])
            || authority
                .rsplit_once('@')
                .is_some_and(|(user, _)| user.split_once(':').is_some_and(|p| !p.1.is_empty()));
        let parsed = if has_password {
            PgConnectOptions::from_str(url)
        } else {
            let separator = if url.contains('?') { '&' } else { '?' };
            PgConnectOptions::from_str(&format!("{url}{separator}password="))
        };
        let mut options =
            parsed.map_err(|_| UrlError::Invalid)?.extra_float_digits(None).disable_statement_logging();
        let local = options.get_socket().is_some() || is_local(options.get_host());
        if !names(&["sslmode", "ssl-mode"]) {
            options = options.ssl_mode(if local { PgSslMode::Prefer } else { PgSslMode::VerifyFull });
        }
        let unverified_tls = !local && !matches!(options.get_ssl_mode(), PgSslMode::VerifyFull);
        Ok(Self {
            options,
            unverified_tls,
            schema,
            relay: relay.into(),
            deadline: Duration::from_secs(5),
            lead_session: Duration::from_secs(10),
        })
    }

    /// What sqlx needs to connect.
    #[must_use]
    pub fn options(&self) -> &PgConnectOptions {
        &self.options
    }

    /// Where the database is; without user and password.
    pub(crate) fn address(&self) -> String {
        address(&self.options)
    }

    /// Says once, at start, that nobody verifies whom we talk to, if the URL asked for that.
    pub(crate) fn warn_of_unverified_tls(&self) {
        if self.unverified_tls {
            tracing::warn!(target: "outboxd::session", sslmode = ?self.options.get_ssl_mode(),
                "the database's identity is not verified because the database url says so; remedy: sslmode=verify-full");
        }
    }
}

impl fmt::Debug for PostgresConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresConfig")
            .field("host", &self.options.get_host())
            .field("port", &self.options.get_port())
            .field("database", &self.options.get_database())
            .field("schema", &self.schema)
            .field("relay", &self.relay)
            .field("deadline", &self.deadline)
            .field("lead_session", &self.lead_session)
            .finish_non_exhaustive()
    }
}

/// Host, port and database.
pub(crate) fn address(options: &PgConnectOptions) -> String {
    let database = options.get_database().unwrap_or_default();
    match options.get_socket() {
        Some(socket) => format!("{}:{}/{database}", socket.display(), options.get_port()),
        None => format!("{}:{}/{database}", options.get_host(), options.get_port()),
    }
}

fn is_local(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare == "localhost"
        || bare.starts_with('/')
        || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Why a statement failed. No value of the application is in here: the server's detail, which quotes rows, is dropped.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    #[error("connect to {address}, as database.url says")]
    Connect { address: String, source: Box<CallError> },
    #[error("remedy: {remedy}")]
    Remedied { remedy: &'static str, source: Box<CallError> },
    #[error("no answer within {0:?}")]
    Deadline(Duration),
    #[error("the server answered {code}: {message}")]
    Server { code: String, message: String },
    #[error("the connection broke")]
    Connection(#[source] std::io::Error),
    #[error("tls: {0}")]
    Tls(String),
    #[error("{0}")]
    Client(String),
    #[error("the server is in recovery, a primary is needed")]
    InRecovery,
    #[error("the server is version {0}")]
    ServerVersion(i32),
    #[error("the session that holds the lead is gone")]
    LeadLost,
    #[error("the database was restarted or replaced after the lead was taken")]
    OtherIncarnation,
}

impl CallError {
    pub(crate) fn code(&self) -> Option<&str> {
        match self {
            Self::Server { code, .. } => Some(code),
            Self::Connect { source, .. } | Self::Remedied { source, .. } => source.code(),
            _ => None,
        }
    }

    /// What an operator can do about it, if the server said something that names it.
    pub(crate) fn remedy(&self) -> Option<&'static str> {
        Some(match self.code()? {
            "3D000" => "create the database, or correct the one in database.url",
            "28000" => "create the role, let pg_hba.conf admit it, or correct the one in database.url",
            "28P01" => "correct the password in database.url",
            "42501" => "run `outboxd migrate grants --relay <role>` for the role that the relay connects as",
            "42P01" | "42703" | "42883" | "3F000" => {
                "the outbox is not installed as this version expects it: run `outboxd migrate`"
            }
            // Data that cannot be read stays so.
            code if code.starts_with("22") => {
                "text of a message is not valid in the database's encoding or has no form in UTF-8: correct the messages above \
                 the cursor's high, and move the outbox to a database with encoding UTF8"
            }
            _ => return None,
        })
    }

    /// Whether the server let nobody in under this name.
    fn is_refused_login(&self) -> bool {
        matches!(self.code(), Some("3D000" | "28000" | "28P01"))
    }

    /// At the boundary: what an operator must act on is told apart from what passes by itself.
    pub(crate) fn during(self, doing: &'static str) -> OutboxError {
        if let Self::ServerVersion(_) = self {
            return OutboxError::Refused {
                finding: format!("{doing}: {self}"),
                remedy: "PostgreSQL 13 or later is needed".into(),
            };
        }
        // Prepared statements that exist already, or no longer, were prepared on somebody else's server connection.
        if matches!(self.code(), Some("42P05" | "26000")) {
            return pooled_by_transaction();
        }
        match self.remedy() {
            // A relay that starts together with its database waits for role and database too.
            Some(remedy) if !self.is_refused_login() => self.refused(doing, remedy),
            Some(remedy) => {
                OutboxError::unavailable(doing, Self::Remedied { remedy, source: Box::new(self) })
            }
            None => OutboxError::unavailable(doing, self),
        }
    }

    /// As [`CallError::during`], for a command that does not wait.
    fn during_once(self, doing: &'static str) -> OutboxError {
        match self.remedy() {
            Some(remedy) => self.refused(doing, remedy),
            None => self.during(doing),
        }
    }

    fn refused(&self, doing: &'static str, remedy: &str) -> OutboxError {
        let chain = outboxd_engine::chain(self);
        OutboxError::Refused { finding: format!("{doing}: {chain}"), remedy: remedy.into() }
    }

    /// With the address that it came from. What the server is, rather than where, is said without.
    fn at(self, config: &PostgresConfig) -> Self {
        match self {
            Self::InRecovery | Self::ServerVersion(_) => self,
            other => Self::Connect { address: config.address(), source: Box::new(other) },
        }
    }
}

/// Sessions do not keep what they hold.
pub(crate) fn pooled_by_transaction() -> OutboxError {
    OutboxError::Refused {
        finding: "a proxy between relay and database pools by transaction, so that a session cannot hold the lead".into(),
        remedy: "connect to PostgreSQL directly, or through a pool in session mode (PgBouncer: pool_mode = session)".into(),
    }
}

impl From<sqlx::Error> for CallError {
    fn from(error: sqlx::Error) -> Self {
        match error {
            sqlx::Error::Database(error) => Self::Server {
                code: error.code().map_or_else(|| "XX000".to_owned(), |code| code.into_owned()),
                message: error.message().to_owned(),
            },
            sqlx::Error::Io(error) => Self::Connection(error),
            sqlx::Error::Tls(error) => Self::Tls(error.to_string()),
            other => Self::Client(other.to_string()),
        }
    }
}

/// What a session is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Holds the leadership lock; settles.
    Lead,
    /// Reads pages.
    Read,
    /// Waits for durability.
    Durable,
    /// Held messages, backlog, purge.
    Rest,
    /// An operator's command.
    Operate,
}

impl Purpose {
    fn word(self) -> &'static str {
        match self {
            Self::Lead => "lead",
            Self::Read => "read",
            Self::Durable => "durable",
            Self::Rest => "rest",
            Self::Operate => "operate",
        }
    }

    /// Session settings by name. Those that a server version does not know are left out when they are set.
    pub(crate) fn settings(self, config: &PostgresConfig) -> Vec<(&'static str, String)> {
        let ms = |duration: Duration| duration.as_millis().max(1).to_string();
        // A vanished host must free the lock within the lead session: three probes in a fifth of it each.
        let probe = (config.lead_session / 5).as_secs().max(1).to_string();
        let mut name = format!("outboxd {} {}", self.word(), config.relay);
        name.truncate(name.floor_char_boundary(63));
        let mut settings = vec![
            ("application_name", name),
            ("search_path", String::new()),
            ("default_transaction_isolation", "read committed".into()),
            ("default_transaction_read_only", "off".into()),
            ("tcp_keepalives_idle", probe.clone()),
            ("tcp_keepalives_interval", probe),
            ("tcp_keepalives_count", "3".into()),
            ("tcp_user_timeout", ms(config.lead_session)),
            ("client_connection_check_interval", "2000".into()),
            ("statement_timeout", ms(config.deadline * 4 / 5)),
            ("lock_timeout", ms(config.deadline / 2)),
            ("idle_in_transaction_session_timeout", ms(config.deadline)),
            ("jit", "off".into()),
            ("max_parallel_workers_per_gather", "0".into()),
        ];
        settings.push(match self {
            // The kernel of a frozen leader goes on answering keepalives: only this ends its session.
            Self::Lead => ("idle_session_timeout", ms(config.lead_session)),
            Self::Read | Self::Durable | Self::Rest | Self::Operate => ("idle_session_timeout", "0".into()),
        });
        match self {
            // A settle that a crash takes back costs duplicates only, and so does a purge.
            Self::Lead | Self::Rest => settings.push(("synchronous_commit", "off".into())),
            Self::Durable => settings.push(("synchronous_commit", "local".into())),
            Self::Read | Self::Operate => {}
        }
        if matches!(self, Self::Lead | Self::Read | Self::Rest) {
            // The statements are written so that only their index fits; a plan made while the table was empty stays right, and
            // planning anew costs ten times what an empty page does.
            settings.extend([
                ("enable_seqscan", "off".to_owned()),
                ("enable_bitmapscan", "off".into()),
                ("plan_cache_mode", "force_generic_plan".into()),
            ]);
        }
        settings
    }
}

/// One life of one server: memory is valid only on the incarnation it was read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Incarnation {
    /// `pg_postmaster_start_time()`, microseconds.
    pub(crate) started_us: i64,
}

/// An open connection and what was learnt when it was made.
#[derive(Debug)]
struct Live {
    connection: PgConnection,
    incarnation: Incarnation,
}

/// A place for one connection.
#[derive(Debug)]
pub(crate) struct Session {
    config: PostgresConfig,
    purpose: Purpose,
    slot: Mutex<Option<Live>>,
    /// Counts closings; a call that began before one does not put its connection back.
    generation: AtomicU64,
}

impl Session {
    pub(crate) fn new(config: &PostgresConfig, purpose: Purpose) -> Self {
        Self { config: config.clone(), purpose, slot: Mutex::new(None), generation: AtomicU64::new(0) }
    }

    /// Takes the connection out, connecting if there is none. Waits for a call that is under way on this session; each has its
    /// deadline.
    pub(crate) async fn call(&self, doing: &'static str) -> Result<Call<'_>, OutboxError> {
        let slot = self.slot.lock().await;
        let generation = self.generation.load(Ordering::SeqCst);
        let deadline = Instant::now() + self.config.deadline;
        self.begin(slot, generation, doing, deadline).await
    }

    /// As [`Session::call`], but never on a new connection: what the session holds (a lock) would not be there.
    pub(crate) async fn call_if_open(&self, doing: &'static str) -> Result<Call<'_>, OutboxError> {
        let slot = self.slot.lock().await;
        if slot.is_none() {
            return Err(CallError::LeadLost.during(doing));
        }
        let generation = self.generation.load(Ordering::SeqCst);
        let deadline = Instant::now() + self.config.deadline;
        self.begin(slot, generation, doing, deadline).await
    }

    async fn begin<'s>(
        &'s self,
        mut slot: MutexGuard<'s, Option<Live>>,
        generation: u64,
        doing: &'static str,
        deadline: Instant,
    ) -> Result<Call<'s>, OutboxError> {
        let live = match slot.take() {
            Some(live) => live,
            None => match timeout_at(deadline, self.connect()).await {
                Ok(Ok(live)) => live,
                Ok(Err(error)) => return Err(self.not_connected(error, doing)),
                Err(_) => return Err(self.not_connected(CallError::Deadline(self.config.deadline), doing)),
            },
        };
        Ok(Call { session: self, slot, live, generation, doing, deadline })
    }

    fn not_connected(&self, error: CallError, doing: &'static str) -> OutboxError {
        let error = error.at(&self.config);
        match self.purpose {
            Purpose::Operate => error.during_once(doing),
            Purpose::Lead | Purpose::Read | Purpose::Durable | Purpose::Rest => error.during(doing),
        }
    }

    async fn connect(&self) -> Result<Live, CallError> {
        let mut connection = PgConnection::connect_with(&self.config.options).await?;
        let (names, values): (Vec<_>, Vec<_>) = self.purpose.settings(&self.config).into_iter().unzip();
        sqlx::query(include_str!("sql/session_settings.sql"))
            .persistent(false)
            .bind(names)
            .bind(values)
            .execute(&mut connection)
            .await?;
        let row = sqlx::query(include_str!("sql/session_server.sql"))
            .persistent(false)
            .fetch_one(&mut connection)
            .await?;
        let version_num = row.try_get::<i32, _>("version_num")?;
        if version_num < SERVER_VERSION_MIN {
            return Err(CallError::ServerVersion(version_num));
        }
        if row.try_get::<bool, _>("in_recovery")? {
            return Err(CallError::InRecovery);
        }
        let incarnation = Incarnation { started_us: row.try_get("started_us")? };
        tracing::debug!(target: "outboxd::session", session = self.purpose.word(), "connected");
        Ok(Live { connection, incarnation })
    }

    /// Closes the connection, politely if it is idle. A call under way closes it when it ends.
    pub(crate) async fn close(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        let taken = self.slot.try_lock().ok().and_then(|mut slot| slot.take());
        if let Some(live) = taken {
            // The connection is gone either way: dropped, if the goodbye does not get through.
            match timeout_at(Instant::now() + CLOSE_WITHIN, live.connection.close()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => {
                    tracing::debug!(target: "outboxd::session", session = self.purpose.word(), "dropped unclosed");
                }
            }
        }
    }
}

/// One call: statements on one connection within one deadline. Unless [`Call::done`] is reached, the connection is closed.
#[derive(Debug)]
pub(crate) struct Call<'s> {
    session: &'s Session,
    slot: MutexGuard<'s, Option<Live>>,
    live: Live,
    generation: u64,
    doing: &'static str,
    deadline: Instant,
}

/// A statement with its values.
pub(crate) type Statement<'q> = Query<'q, Postgres, sqlx::postgres::PgArguments>;

impl Call<'_> {
    /// The incarnation of the server that this connection was made to.
    pub(crate) fn incarnation(&self) -> Incarnation {
        self.live.incarnation
    }

    /// Runs a statement and returns its rows.
    pub(crate) async fn rows(&mut self, statement: Statement<'_>) -> Result<Vec<PgRow>, OutboxError> {
        match timeout_at(self.deadline, statement.fetch_all(&mut self.live.connection)).await {
            Ok(Ok(rows)) => Ok(rows),
            Ok(Err(error)) => Err(self.failed(CallError::from(error))),
            Err(_) => Err(self.failed(CallError::Deadline(self.session.config.deadline))),
        }
    }

    /// Runs a statement that returns exactly one row.
    pub(crate) async fn row(&mut self, statement: Statement<'_>) -> Result<PgRow, OutboxError> {
        let rows = self.rows(statement).await?;
        rows.into_iter().next().ok_or_else(|| self.failed(CallError::Client("no row came back".into())))
    }

    /// Runs a statement and returns how many rows it changed.
    pub(crate) async fn execute(&mut self, statement: Statement<'_>) -> Result<u64, OutboxError> {
        match timeout_at(self.deadline, statement.execute(&mut self.live.connection)).await {
            Ok(Ok(done)) => Ok(done.rows_affected()),
            Ok(Err(error)) => Err(self.failed(CallError::from(error))),
            Err(_) => Err(self.failed(CallError::Deadline(self.session.config.deadline))),
        }
    }

    /// Runs SQL without values: `begin`, `commit`, a script.
    pub(crate) async fn script(&mut self, sql: SqlStr) -> Result<(), OutboxError> {
        match timeout_at(self.deadline, sqlx::raw_sql(sql).execute(&mut self.live.connection)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(self.failed(CallError::from(error))),
            Err(_) => Err(self.failed(CallError::Deadline(self.session.config.deadline))),
        }
    }

    /// This call's error.
    pub(crate) fn failed(&self, error: CallError) -> OutboxError {
        error.during(self.doing)
    }

    /// A value of a row that cannot be read is an error of this call.
    pub(crate) fn value<T>(&self, value: Result<T, sqlx::Error>) -> Result<T, OutboxError> {
        value.map_err(|error| self.failed(CallError::from(error)))
    }

    /// The call has succeeded: the connection may be used again.
    pub(crate) fn done(self) {
        let Self { session, mut slot, live, generation, .. } = self;
        if session.generation.load(Ordering::SeqCst) == generation {
            *slot = Some(live);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(url: &str) -> PostgresConfig {
        PostgresConfig::from_url(url, SchemaName::default(), "relay-1").unwrap()
    }

    #[test]
    fn tls_is_verified_unless_the_address_is_local_or_the_url_says_otherwise() {
        for (url, mode, unverified) in [
            ("postgres://app:x@db.example/app", "VerifyFull", false),
            ("postgres://app:x@db.example/app?sslmode=require", "Require", true),
            ("postgres://app:x@db.example/app?sslmode=disable", "Disable", true),
            ("postgres://app:x@10.0.0.1/app", "VerifyFull", false),
            ("postgres://app:x@127.0.0.1/app", "Prefer", false),
            ("postgres://app:x@[::1]:5433/app", "Prefer", false),
            ("postgres://app:x@localhost/app", "Prefer", false),
            ("postgres:///app?user=app&host=/run/postgresql", "Prefer", false),
            ("postgres://app:x@localhost/app?sslmode=verify-full", "VerifyFull", false),
        ] {
            let config = config(url);
            assert_eq!(format!("{:?}", config.options.get_ssl_mode()), mode, "{url}");
            assert_eq!(config.unverified_tls, unverified, "{url}");
        }
    }

    #[test]
    fn neither_the_configuration_nor_a_url_error_shows_a_password() {
        let config = config("postgres://app:hunter2@db.example/app");
        assert!(!format!("{config:?}").contains("hunter2"));
        for url in
            ["mysql://app:hunter2@db/app", "postgres://app:hunter2@db:port/app", "postgres://hunter2@[/app"]
        {
            let error = PostgresConfig::from_url(url, SchemaName::default(), "relay-1").unwrap_err();
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
        }
    }

    #[test]
    fn a_long_relay_name_is_cut_at_a_character() {
        let mut config = config("postgres://app:x@localhost/app");
        config.relay = "ü".repeat(60);
        let settings = Purpose::Lead.settings(&config);
        assert!(settings[0].1.len() <= 63 && settings[0].1.starts_with("outboxd lead ü"));
    }

    #[test]
    fn only_the_lead_session_ends_when_it_is_idle() {
        let config = config("postgres://app:x@localhost/app");
        for (purpose, timeout) in [
            (Purpose::Lead, "10000"),
            (Purpose::Read, "0"),
            (Purpose::Durable, "0"),
            (Purpose::Rest, "0"),
            (Purpose::Operate, "0"),
        ] {
            let settings = purpose.settings(&config);
            assert!(settings.contains(&("idle_session_timeout", timeout.to_owned())), "{purpose:?}");
        }
    }
}
