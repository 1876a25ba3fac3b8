//! The preflight: what could keep a relay that connects as this role from doing its work, each finding with its remedy.
//!
//! Questions are asked in an order in which each needs only what those before it have found to be there: the server,
//! the catalog, the grants, and then the tables.

use outboxd_engine::{Finding, OutboxError, Severity};
use sqlx::Row;
use sqlx::postgres::PgRow;

use super::PostgresOperator;
use crate::lead::{FOREIGN_REMEDY, NO_CURSOR, encoding_refusal, sequence_refusal};
use crate::migrate::{Applied, Part, SCHEMA_VERSION, SCHEMA_VERSION_MIN, TRACE_INDEXES};
use crate::row_security::Hidden;
use crate::schema::render;
use crate::session::{Call, CallError};

/// A transaction that is open for longer is worth a warning.
const HORIZON_SECONDS_MAX: f64 = 15.0 * 60.0;

/// A slot that holds back more transactions than this is worth a warning; it has no time.
const HORIZON_XIDS_MAX: i32 = 1_000_000;

/// The first version whose sessions can be told to end when they are idle.
const IDLE_SESSION_TIMEOUT_SINCE: i32 = 140_000;

impl PostgresOperator {
    pub(super) async fn findings(&self) -> Result<Vec<Finding>, OutboxError> {
        let mut call = match self.session.call("check the database").await {
            Ok(call) => call,
            Err(error) => return refusal(error).map(|finding| vec![finding]),
        };
        let server = self.server(&mut call).await?;
        let mut findings = server.findings();
        findings.push(self.pooling(&mut call).await?);
        findings.push(self.horizon(&mut call, &server).await?);
        self.outbox(&mut call, &server, &mut findings).await?;
        call.done();
        Ok(findings)
    }

    async fn server(&self, call: &mut Call<'_>) -> Result<Server, OutboxError> {
        let query = sqlx::query(include_str!("../sql/operate_check_server.sql")).persistent(false);
        let row = call.row(query).await?;
        call.value(Server::read(&row))
    }

    /// While one of two sessions is inside a transaction, a proxy that pools by transaction cannot give its connection to the
    /// other: either both show the same backend, or the first is moved to another.
    async fn pooling(&self, first: &mut Call<'_>) -> Result<Finding, OutboxError> {
        const CHECK: &str = "pooling proxy";
        let before = backend(first).await?;
        let mut second = self.second_session.call("check the database").await?;
        second.script(sqlx::SqlSafeStr::into_sql_str("begin")).await?;
        let other = backend(&mut second).await?;
        let after = backend(first).await?;
        second.script(sqlx::SqlSafeStr::into_sql_str("commit")).await?;
        second.done();
        Ok(if before == after && before != other {
            ok(CHECK, "each connection keeps its session")
        } else {
            error(
                CHECK,
                "a proxy pools by transaction, so that no session can hold the lead",
                "connect to PostgreSQL directly, or through a pool in session mode (PgBouncer: pool_mode = session)",
            )
        })
    }

    async fn horizon(&self, call: &mut Call<'_>, server: &Server) -> Result<Finding, OutboxError> {
        let query = sqlx::query(include_str!("../sql/operate_check_horizon.sql")).persistent(false);
        let rows = call.rows(query).await?;
        let holder = call.value(rows.first().map(Holder::read).transpose())?;
        Ok(horizon(holder.as_ref(), server))
    }

    /// The optional indexes.
    async fn trace_indexes(&self, call: &mut Call<'_>) -> Result<Finding, OutboxError> {
        let sql = render(include_str!("../sql/trace_indexes_state.sql"), &self.config.schema);
        let rows = call.rows(sqlx::query(sql).persistent(false).bind(TRACE_INDEXES)).await?;
        let read = |row: &PgRow| -> Result<TraceIndex, sqlx::Error> {
            Ok(TraceIndex {
                name: row.try_get("name")?,
                valid: row.try_get("valid")?,
                builder: row.try_get("builder")?,
            })
        };
        let found: Vec<TraceIndex> = call.value(rows.iter().map(read).collect())?;
        Ok(trace_indexes(&found))
    }

    /// Everything about the outbox itself.
    async fn outbox(
        &self,
        call: &mut Call<'_>,
        server: &Server,
        findings: &mut Vec<Finding>,
    ) -> Result<(), OutboxError> {
        let schema = &self.config.schema;
        let sql = render(include_str!("../sql/operate_check_installed.sql"), schema);
        let rows = call.rows(sqlx::query(sql).persistent(false)).await?;
        let Some(row) = rows.first() else {
            findings.push(error(
                "schema version",
                format!("there is no outbox in schema {schema} of database {}", server.database),
                "run `outboxd migrate`",
            ));
            return Ok(());
        };
        let installed = call.value(Installed::read(row))?;

        let sql = render(include_str!("../sql/migrate_missing_grants.sql"), schema);
        let rows =
            call.rows(sqlx::query(sql).persistent(false).bind(&server.role).bind(Part::Relay.word())).await?;
        let missing: Vec<String> = call.value(rows.iter().map(|row| row.try_get("missing")).collect())?;
        findings.push(installed.grants(&server.role, &missing));
        let row_security = render(include_str!("../sql/row_security.sql"), schema);
        let hidden = Hidden::tables(call, row_security).await?;
        findings.push(match Hidden::told(&hidden) {
            None => ok("row security", format!("{} sees every row", server.role)),
            Some((found, remedy)) => error("row security", found, remedy),
        });
        findings.extend(installed.findings());
        findings.push(self.trace_indexes(call).await?);
        // A row that this role does not see is not missing.
        if !missing.is_empty() || !hidden.is_empty() {
            return Ok(());
        }

        let sql = render(include_str!("../sql/migrate_applied.sql"), schema);
        let rows = call.rows(sqlx::query(sql).persistent(false)).await?;
        let applied: Vec<Applied> = call.value(rows.iter().map(Applied::read).collect())?;
        findings.extend(migrations(&applied));

        let sql = render(include_str!("../sql/operate_check_cursor.sql"), schema);
        let rows = call.rows(sqlx::query(sql).persistent(false)).await?;
        match rows.first() {
            Some(row) => findings.extend(call.value(CursorState::read(row))?.findings()),
            None => findings.push(error("cursor", NO_CURSOR.0, NO_CURSOR.1)),
        }
        Ok(())
    }
}

fn ok(check: &str, found: impl Into<String>) -> Finding {
    Finding { check: check.into(), severity: Severity::Ok, found: found.into(), remedy: String::new() }
}

fn warning(check: &str, found: impl Into<String>, remedy: impl Into<String>) -> Finding {
    Finding { check: check.into(), severity: Severity::Warning, found: found.into(), remedy: remedy.into() }
}

fn error(check: &str, found: impl Into<String>, remedy: impl Into<String>) -> Finding {
    Finding { check: check.into(), severity: Severity::Error, found: found.into(), remedy: remedy.into() }
}

/// A server that answered but does not serve a relay is a finding; one that did not answer is an error.
fn refusal(failed: OutboxError) -> Result<Finding, OutboxError> {
    match failed {
        OutboxError::Refused { finding, remedy } => Ok(error("server", finding, remedy)),
        OutboxError::Unavailable { ref source, .. }
            if matches!(source.downcast_ref(), Some(CallError::InRecovery)) =>
        {
            Ok(error(
                "recovery",
                "the server is in recovery: a standby, or a primary that has yet to start",
                "connect to the primary",
            ))
        }
        other @ (OutboxError::Unavailable { .. } | OutboxError::Fenced) => Err(other),
    }
}

async fn backend(call: &mut Call<'_>) -> Result<i32, OutboxError> {
    let row =
        call.row(sqlx::query("select pg_catalog.pg_backend_pid() as backend").persistent(false)).await?;
    call.value(row.try_get("backend"))
}

/// What the server says of itself and of this role.
#[derive(Debug)]
struct Server {
    version: String,
    version_num: i32,
    role: String,
    database: String,
    fsync: bool,
    full_page_writes: bool,
    synchronous_commit: String,
    synchronous_standby_names: String,
    synchronous_standbys: i64,
    reads_all_stats: bool,
    encoding: String,
    open_xids: i64,
}

impl Server {
    fn read(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            version: row.try_get("version")?,
            version_num: row.try_get("version_num")?,
            role: row.try_get("role")?,
            database: row.try_get("database")?,
            fsync: row.try_get("fsync")?,
            full_page_writes: row.try_get("full_page_writes")?,
            synchronous_commit: row.try_get("synchronous_commit")?,
            synchronous_standby_names: row.try_get("synchronous_standby_names")?,
            synchronous_standbys: row.try_get("synchronous_standbys")?,
            reads_all_stats: row.try_get("reads_all_stats")?,
            encoding: row.try_get("encoding")?,
            open_xids: row.try_get("open_xids")?,
        })
    }

    fn findings(&self) -> Vec<Finding> {
        let connected = format!("connected to database {} as {}", self.database, self.role);
        vec![
            ok("connection", connected),
            // The session refuses both before anything is asked.
            ok("server version", &self.version),
            ok("recovery", "not in recovery"),
            self.encoding(),
            self.durability(),
            self.standbys(),
            self.idle_sessions(),
        ]
    }

    fn encoding(&self) -> Finding {
        const CHECK: &str = "encoding";
        match encoding_refusal(&self.encoding) {
            None => ok(CHECK, &self.encoding),
            Some((found, remedy)) => error(CHECK, found, remedy),
        }
    }

    fn durability(&self) -> Finding {
        const CHECK: &str = "durability";
        if !self.fsync || !self.full_page_writes {
            let setting = if self.fsync { "full_page_writes" } else { "fsync" };
            return warning(
                CHECK,
                format!(
                    "{setting} is off: a crash of the server's machine may take back or damage what was published"
                ),
                format!("set {setting} = on"),
            );
        }
        match self.synchronous_commit.as_str() {
            "off" => ok(
                CHECK,
                "synchronous_commit is off for applications: the relay waits until what it read is on disk",
            ),
            value => ok(CHECK, format!("synchronous_commit is {value}")),
        }
    }

    fn standbys(&self) -> Finding {
        const CHECK: &str = "synchronous standbys";
        match (self.synchronous_standby_names.is_empty(), self.synchronous_standbys) {
            (true, _) => ok(
                CHECK,
                "none are configured: a failover to an asynchronous standby may take back what was published",
            ),
            (false, 0) => warning(
                CHECK,
                format!(
                    "synchronous_standby_names is {:?} and none is connected: commits wait",
                    self.synchronous_standby_names
                ),
                "connect a synchronous standby, or empty synchronous_standby_names",
            ),
            (false, connected) => ok(CHECK, format!("{connected} connected")),
        }
    }

    fn idle_sessions(&self) -> Finding {
        const CHECK: &str = "takeover";
        if self.version_num >= IDLE_SESSION_TIMEOUT_SINCE {
            return ok(CHECK, "the server ends the session of a leader that stops answering");
        }
        warning(
            CHECK,
            "PostgreSQL 13 has no idle_session_timeout: a leader that is frozen, but whose host still answers, keeps the lead",
            "use PostgreSQL 14 or later, or let something restart a relay whose /livez does not answer",
        )
    }
}

/// Whoever holds vacuum back most.
#[derive(Debug)]
struct Holder {
    what: String,
    xids: Option<i32>,
    seconds: Option<f64>,
}

impl Holder {
    fn read(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self { what: row.try_get("what")?, xids: row.try_get("xids")?, seconds: row.try_get("seconds")? })
    }
}

/// What to do about whoever holds vacuum back for long.
const END_IT: &str = "end it: dead versions of the cursor pile up and every settle gets slower \
    (pg_terminate_backend, rollback prepared, pg_drop_replication_slot)";

fn horizon(holder: Option<&Holder>, server: &Server) -> Finding {
    const CHECK: &str = "oldest xmin";
    let hidden = if server.reads_all_stats {
        String::new()
    } else {
        format!(
            "; sessions of other roles are hidden (`grant pg_read_all_stats to \"{}\"` shows them)",
            server.role
        )
    };
    let is_behind = |holder: &&Holder| i64::from(holder.xids.unwrap_or(0)) >= server.open_xids;
    let Some(holder) = holder.filter(|holder| server.reads_all_stats || is_behind(holder)) else {
        if server.reads_all_stats {
            return ok(CHECK, "nobody holds vacuum back");
        }
        // Every role sees how old the oldest one that writes is, though not whose it is.
        let found = format!(
            "the oldest transaction that writes holds back {} transactions{hidden}",
            server.open_xids
        );
        return if server.open_xids > i64::from(HORIZON_XIDS_MAX) {
            warning(CHECK, found, END_IT)
        } else {
            ok(CHECK, found)
        };
    };
    let since = holder.seconds.map_or_else(String::new, |seconds| format!(" for {seconds:.0} s"));
    let xids = holder.xids.unwrap_or(0);
    let found = format!("{} holds back {xids} transactions{since}{hidden}", holder.what);
    let too_long = holder.seconds.map_or(xids > HORIZON_XIDS_MAX, |seconds| seconds > HORIZON_SECONDS_MAX);
    if too_long { warning(CHECK, found, END_IT) } else { ok(CHECK, found) }
}

/// What the catalog says of the outbox.
#[derive(Debug)]
struct Installed {
    message_table: String,
    missing_indexes: Option<String>,
    fills_in: bool,
    may_alter_intents: bool,
    sequence_cache: Option<i64>,
}

impl Installed {
    fn read(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            message_table: row.try_get("message_table")?,
            missing_indexes: row.try_get("missing_indexes")?,
            fills_in: row.try_get("fills_in")?,
            may_alter_intents: row.try_get("may_alter_intents")?,
            sequence_cache: row.try_get("sequence_cache")?,
        })
    }

    fn grants(&self, role: &str, missing: &[String]) -> Finding {
        const CHECK: &str = "grants";
        if !missing.is_empty() {
            return error(
                CHECK,
                format!("{role} lacks: {}", missing.join(", ")),
                format!(
                    "run `outboxd migrate grants --relay {role}` as the owner of the outbox; the tables were not looked at"
                ),
            );
        }
        if self.may_alter_intents {
            return warning(
                CHECK,
                format!("{role} may also write and alter intents"),
                "let the relay connect as a role of its own that owns nothing: `outboxd migrate grants --relay <role>`",
            );
        }
        ok(CHECK, format!("{role} has what the relay needs and cannot alter intents"))
    }

    fn findings(&self) -> Vec<Finding> {
        let table = &self.message_table;
        let indexes = match &self.missing_indexes {
            None => ok("indexes", "those that the relay needs are valid"),
            Some(missing) => error(
                "indexes",
                format!("missing, not valid or on other columns: {missing}"),
                "create them again as migrations/postgres has them, with `create index concurrently`",
            ),
        };
        let cache = match self.sequence_cache {
            Some(1) => ok("sequence cache", "1"),
            cache => error(
                "sequence cache",
                format!(
                    "{}: sessions draw numbers ahead of time, which breaks the order of a key",
                    cache.unwrap_or(0)
                ),
                format!("`alter table {table} alter column seq set cache 1`"),
            ),
        };
        let trigger = if self.fills_in {
            ok("trigger", "fill_in treats NULL in id and correlation_id as not set")
        } else {
            error(
                "trigger",
                format!(
                    "fill_in on {table} is missing or disabled: writers that send NULL for what they leave out fail"
                ),
                format!(
                    "`alter table {table} enable trigger fill_in`, or create it again as migrations/postgres has it"
                ),
            )
        };
        vec![indexes, trigger, cache]
    }
}

/// One of the optional indexes that is there.
#[derive(Debug)]
struct TraceIndex {
    name: String,
    valid: bool,
    builder: Option<i32>,
}

/// An outbox without them is as good; what is paid for and not used is worth a word.
fn trace_indexes(found: &[TraceIndex]) -> Finding {
    const CHECK: &str = "trace indexes";
    let missing: Vec<&str> =
        TRACE_INDEXES.into_iter().filter(|index| !found.iter().any(|there| there.name == *index)).collect();
    let invalid: Vec<&str> =
        found.iter().filter(|there| !there.valid).map(|there| there.name.as_str()).collect();
    if let Some(builder) = found.iter().filter(|there| !there.valid).find_map(|there| there.builder) {
        return ok(CHECK, format!("being built by backend {builder}: {}", invalid.join(", ")));
    }
    if !invalid.is_empty() {
        return warning(
            CHECK,
            format!("every insert pays for them and no query uses them: {}", invalid.join(", ")),
            "run `outboxd migrate trace-indexes` as the owner of the outbox: it builds them anew (or --drop)",
        );
    }
    match missing.len() {
        0 => ok(CHECK, "all are there"),
        all if all == TRACE_INDEXES.len() => {
            ok(CHECK, "none; they are optional, and `outboxd migrate trace-indexes` builds them")
        }
        _some => ok(
            CHECK,
            format!("not there: {}; `outboxd migrate trace-indexes` builds them", missing.join(", ")),
        ),
    }
}

/// Whether the relay serves what is installed, and whether that is what the files say.
fn migrations(applied: &[Applied]) -> Vec<Finding> {
    const CHECK: &str = "schema version";
    let version = applied.last().map_or(0, |last| last.version);
    let serves = format!("this relay serves {SCHEMA_VERSION_MIN} to {SCHEMA_VERSION}");
    let mut findings = vec![if version > SCHEMA_VERSION {
        error(CHECK, format!("{version}; {serves}"), "use the outboxd that installed it, or a later one")
    } else if version < SCHEMA_VERSION_MIN {
        error(CHECK, format!("{version}; {serves}"), "run `outboxd migrate`")
    } else {
        ok(CHECK, version.to_string())
    }];
    for row in applied.iter().filter(|row| row.version <= SCHEMA_VERSION) {
        let named = format!("{} ({})", row.version, row.name);
        findings.push(match (row.verify(), &row.checksum) {
            (Err(differs), _) => {
                warning("migrations", differs.to_string(), "compare the installed objects with the file")
            }
            (Ok(()), None) => ok("migrations", format!("{named} was applied by another tool: not verified")),
            (Ok(()), Some(_)) => ok("migrations", format!("{named} is as it was built in")),
        });
    }
    findings
}

/// What the cursor row says, beside what the server says.
#[derive(Debug)]
struct CursorState {
    max_message_bytes: i32,
    high: i64,
    sequence_last: Option<i64>,
    seq_max: Option<i64>,
    sequence_name: Option<String>,
    settled_in: Option<i64>,
    this_cluster: i64,
    is_in_the_past: bool,
}

impl CursorState {
    fn read(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            max_message_bytes: row.try_get("max_message_bytes")?,
            high: row.try_get("high")?,
            sequence_last: row.try_get("sequence_last")?,
            seq_max: row.try_get("seq_max")?,
            sequence_name: row.try_get("sequence_name")?,
            settled_in: row.try_get("settled_in")?,
            this_cluster: row.try_get("this_cluster")?,
            is_in_the_past: row.try_get("is_in_the_past")?,
        })
    }

    fn findings(&self) -> Vec<Finding> {
        let last = self.sequence_last.unwrap_or(0);
        let name = self.sequence_name.as_deref().unwrap_or_default();
        let sequence = match sequence_refusal(last, self.high, self.seq_max.unwrap_or(0), name) {
            Some((found, remedy)) => error("sequence", found, remedy),
            None => ok("sequence", format!("at {last}, the cursor at {}", self.high)),
        };
        let cluster = match self.settled_in {
            Some(settled_in) if settled_in != self.this_cluster => error(
                "system identifier",
                format!(
                    "the cursor was settled in cluster {settled_in}, this is {}: a restored or cloned database",
                    self.this_cluster
                ),
                FOREIGN_REMEDY,
            ),
            Some(_) => ok("system identifier", "the cursor was settled in this cluster"),
            None => ok("system identifier", "no relay has led yet"),
        };
        let snapshot = if self.is_in_the_past {
            ok("cursor's snapshot", "not ahead of the server")
        } else {
            error(
                "cursor's snapshot",
                "ahead of the server: it was taken in another cluster, or this one was set back",
                FOREIGN_REMEDY,
            )
        };
        let limit = ok(
            "message size",
            format!(
                "intents are limited to {} bytes; topics must take a little more",
                self.max_message_bytes
            ),
        );
        vec![sequence, cluster, snapshot, limit]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server() -> Server {
        Server {
            version: "15.1".into(),
            version_num: 150_001,
            role: "relay".into(),
            database: "shop".into(),
            fsync: true,
            full_page_writes: true,
            synchronous_commit: "on".into(),
            synchronous_standby_names: String::new(),
            synchronous_standbys: 0,
            reads_all_stats: true,
            encoding: "UTF8".into(),
            open_xids: 0,
        }
    }

    #[test]
    fn a_server_as_it_should_be_gives_no_warning() {
        assert!(server().findings().iter().all(|finding| finding.severity == Severity::Ok));
        let asynchronous = Server { synchronous_commit: "off".into(), ..server() };
        assert!(asynchronous.findings().iter().all(|finding| finding.severity == Severity::Ok));
    }

    #[test]
    fn settings_that_put_what_is_committed_at_risk_are_warned_of() {
        let of = |server: Server, check: &str| {
            server.findings().into_iter().find(|finding| finding.check == check).unwrap()
        };
        for server in [Server { fsync: false, ..server() }, Server { full_page_writes: false, ..server() }] {
            assert_eq!(of(server, "durability").severity, Severity::Warning);
        }
        let names = Server { synchronous_standby_names: "ANY 1 (a, b)".into(), ..server() };
        assert_eq!(of(names, "synchronous standbys").severity, Severity::Warning);
        let connected = Server { synchronous_standby_names: "a".into(), synchronous_standbys: 1, ..server() };
        assert_eq!(of(connected, "synchronous standbys").severity, Severity::Ok);
        let thirteen = of(Server { version_num: 130_023, ..server() }, "takeover");
        assert_eq!(thirteen.severity, Severity::Warning);
        assert!(thirteen.found.contains("idle_session_timeout"));
    }

    #[test]
    fn whoever_holds_vacuum_back_is_named_and_warned_of_after_a_while() {
        let holder =
            |xids, seconds| Holder { what: "session 7 of app (batch)".into(), xids: Some(xids), seconds };
        let fresh = horizon(Some(&holder(5_000_000, Some(60.0))), &server());
        assert_eq!(fresh.severity, Severity::Ok);
        assert!(fresh.found.contains("session 7 of app (batch) holds back 5000000 transactions for 60 s"));
        assert_eq!(horizon(Some(&holder(3, Some(3_600.0))), &server()).severity, Severity::Warning);
        assert_eq!(horizon(Some(&holder(3, None)), &server()).severity, Severity::Ok);
        assert_eq!(horizon(Some(&holder(5_000_000, None)), &server()).severity, Severity::Warning);
        let blind = Server { reads_all_stats: false, ..server() };
        let unseen = horizon(None, &blind);
        assert!(
            unseen.found.contains("grant pg_read_all_stats") && !unseen.found.contains("nobody"),
            "{unseen:?}"
        );
        let old = Server { open_xids: 2_000_000, ..blind };
        let unseen = horizon(None, &old);
        assert_eq!(unseen.severity, Severity::Warning);
        assert!(unseen.found.contains("holds back 2000000 transactions"), "{unseen:?}");
    }

    #[test]
    fn optional_indexes_are_no_problem_unless_nobody_can_use_them() {
        let index = |name: &str, valid, builder| TraceIndex { name: name.into(), valid, builder };
        let all = || TRACE_INDEXES.map(|name| index(name, true, None));
        assert_eq!(trace_indexes(&[]).severity, Severity::Ok);
        assert_eq!(trace_indexes(&all()).found, "all are there");
        let some = trace_indexes(&all()[..4]);
        assert!(some.severity == Severity::Ok && some.found.contains("not there: message_key;"), "{some:?}");
        let building = trace_indexes(&[index("message_id", false, Some(77))]);
        assert!(building.severity == Severity::Ok && building.found.contains("backend 77"), "{building:?}");
        let left = trace_indexes(&[index("message_id", false, None)]);
        assert!(left.severity == Severity::Warning && left.found.contains("message_id"), "{left:?}");
    }

    #[test]
    fn another_schema_version_or_text_is_found() {
        let row = |version, checksum: Option<String>| Applied { version, name: "outbox".into(), checksum };
        let severities = |last: Applied| {
            let mut applied: Vec<_> = crate::migrate::MIGRATIONS
                .iter()
                .map(|migration| row(migration.version, Some(migration.checksum())))
                .filter(|known| known.version < last.version)
                .collect();
            applied.push(last);
            migrations(&applied).iter().map(|finding| finding.severity).collect::<Vec<_>>()
        };
        let ours = crate::migrate::MIGRATIONS[2].checksum();
        assert_eq!(severities(row(3, Some(ours))), [Severity::Ok; 4]);
        assert_eq!(severities(row(3, None)), [Severity::Ok; 4]);
        assert_eq!(severities(row(3, Some("0".into())))[2..], [Severity::Ok, Severity::Warning]);
        assert_eq!(severities(row(2, None))[0], Severity::Error, "a relay needs the third");
        assert_eq!(severities(row(1, None)), [Severity::Error, Severity::Ok]);
        assert_eq!(severities(row(99, None))[0], Severity::Error);
        assert_eq!(migrations(&[])[0].severity, Severity::Error);
    }
}
