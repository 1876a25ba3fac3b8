//! Installing the outbox, or the inbox of a consumer, and granting its use.
//!
//! We are a guest in somebody's database: everything stands in one schema, the bookkeeping is a table of ours in it, and the
//! files work with any other tool too, which is why each records itself. What only this module adds is the checksum.
//!
//! Statements are not kept prepared, so that this also works through a proxy that pools by transaction.
//!
//! Each file is applied in a transaction of its own that first takes an advisory lock and then looks again at what was
//! applied: two migrates at the same time do the work once.

use std::fmt::Write as _;
use std::time::Duration;

use sha2::{Digest, Sha256};
use sqlx::postgres::{PgConnectOptions, PgConnection, PgRow};
use sqlx::{ConnectOptions, Connection, Row, SqlStr};

use crate::schema::{RoleName, SchemaName, render, render_for_role, render_word};
use crate::session::{CallError, address};

mod series;

mod trace_indexes;

pub use self::series::INBOX_MIGRATIONS;
use self::series::Series;
pub(crate) use self::trace_indexes::TRACE_INDEXES;
pub use self::trace_indexes::{BuildProgress, IndexAction, IndexStep, TraceIndexes};

/// The schema version that this relay was built for.
pub const SCHEMA_VERSION: i32 = 3;

/// The oldest schema version that this relay runs with. Once there is a release, the one that the release before installs, so that
/// migrating and rolling out are two steps in either order; versions 1 and 2 were never in a release.
pub const SCHEMA_VERSION_MIN: i32 = 3;

/// The oldest server that has `xid8` and `pg_current_xact_id()`, as `server_version_num`.
const SERVER_VERSION_MIN: i32 = 130_000;

/// How long one command may take altogether, connecting and waiting for another migrate included.
const DEADLINE: Duration = Duration::from_secs(120);

/// One file of `migrations/postgres` or `migrations/inbox/postgres`.
#[derive(Debug)]
pub struct Migration {
    /// Its number; counts from 1 without gaps.
    pub version: i32,
    /// Its name.
    pub name: &'static str,
    /// Its text, for schema `outbox` or `inbox`.
    pub sql: &'static str,
}

/// Every migration of the outbox, ascending.
pub const MIGRATIONS: [Migration; 3] = [
    Migration {
        version: 1,
        name: "outbox",
        sql: include_str!("../../../migrations/postgres/0001_outbox.sql"),
    },
    Migration {
        version: 2,
        name: "delivery",
        sql: include_str!("../../../migrations/postgres/0002_delivery.sql"),
    },
    Migration { version: 3, name: "trace", sql: include_str!("../../../migrations/postgres/0003_trace.sql") },
];

impl Migration {
    /// SHA-256 of the file, in hex. Of the file and not of what was rendered: it is the same in every schema.
    #[must_use]
    pub fn checksum(&self) -> String {
        Sha256::digest(self.sql).iter().fold(String::with_capacity(64), |mut hex, byte| {
            // Writing to a String cannot fail.
            let _ = write!(hex, "{byte:02x}");
            hex
        })
    }
}

/// A migration that has yet to be applied.
#[derive(Clone, Debug)]
pub struct Pending {
    /// Its number.
    pub version: i32,
    /// Its name.
    pub name: &'static str,
    /// The SQL that applies it here, in one transaction.
    pub sql: SqlStr,
}

/// Which roles play which part. A role may play several; a part may be left out.
#[derive(Clone, Debug, Default)]
pub struct GrantRoles {
    /// Applications: emit intents.
    pub writer: Option<RoleName>,
    /// The relay, and operators who act on held messages.
    pub relay: Option<RoleName>,
    /// Operators who look.
    pub reader: Option<RoleName>,
    /// Consumers: claim messages. The one part of the inbox; the others are parts of the outbox.
    pub consumer: Option<RoleName>,
}

/// Why the outbox was not installed or granted.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// The database did not answer in time.
    #[error("{doing}: no answer within {} s", DEADLINE.as_secs())]
    Deadline {
        /// What was being done.
        doing: &'static str,
    },
    /// The database did not answer, or the connection was lost. Try again later.
    #[error("{doing}")]
    Unavailable {
        /// What was being done.
        doing: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The database refused; the text says who can do what about it.
    #[error("{finding}; {remedy}")]
    Refused {
        /// What was being done, and what the server answered.
        finding: String,
        /// What to do.
        remedy: &'static str,
    },
    /// The server is too old.
    #[error("PostgreSQL {found} is too old: the outbox needs 13 or later")]
    ServerTooOld {
        /// Its version.
        found: String,
    },
    /// A standby cannot be migrated.
    #[error("the server is in recovery: migrate the primary")]
    InRecovery,
    /// Somebody else's future.
    #[error(
        "migration {version} ({name}) is applied but unknown here: this version knows migrations up to {known}; use a newer one"
    )]
    Newer {
        /// The migration.
        version: i32,
        /// Its name.
        name: String,
        /// The newest one known here.
        known: i32,
    },
    /// The file has changed since it was applied.
    #[error(
        "migration {version} ({name}) was applied from another text: its checksum is {applied}, this version's is {known}; use the version that applied it, or compare the two and correct the table `migration` of its schema"
    )]
    Checksum {
        /// The migration.
        version: i32,
        /// Its name.
        name: String,
        /// As recorded.
        applied: String,
        /// As built in.
        known: String,
    },
    /// Nothing to grant on.
    #[error("there is no outbox in schema {0}: run `outboxd migrate` first")]
    NotInstalled(SchemaName),
    /// Nothing to grant on.
    #[error("there is no inbox in schema {0}: run `outboxd migrate --inbox` first")]
    NoInbox(SchemaName),
    /// One schema, one series of migrations.
    #[error("schema {schema} holds an {by}: give the {wanted} a schema of its own with --schema")]
    Taken {
        /// The schema.
        schema: SchemaName,
        /// What is there.
        by: &'static str,
        /// What was to be there.
        wanted: &'static str,
    },
    /// Roles are the administrator's to create.
    #[error("no such role: {}; create it first (`create role ... login`): outboxd creates no roles", .0.join(", "))]
    MissingRoles(Vec<String>),
    /// PostgreSQL only warns when a role grants what it may not grant.
    #[error(
        "role {role} still lacks: {}; grant as the owner of the schema and its tables", .missing.join(", ")
    )]
    NotGranted {
        /// The role.
        role: String,
        /// What it lacks.
        missing: Vec<String>,
    },
}

/// Installs the outbox or the inbox and grants its use. One connection a command, closed at its end.
#[derive(Clone)]
pub struct Migrator {
    options: PgConnectOptions,
    schema: SchemaName,
    series: Series,
}

/// Without the connection options, which print the password.
impl std::fmt::Debug for Migrator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Migrator").field("schema", &self.schema).finish_non_exhaustive()
    }
}

impl Migrator {
    /// For an outbox in this schema of this database.
    #[must_use]
    pub fn new(options: PgConnectOptions, schema: SchemaName) -> Self {
        Self { options: options.application_name("outboxd migrate"), schema, series: Series::Outbox }
    }

    /// For the inbox of consumers in this schema of this database.
    #[must_use]
    pub fn inbox(options: PgConnectOptions, schema: SchemaName) -> Self {
        Self { series: Series::Inbox, ..Self::new(options, schema) }
    }

    /// What [`Migrator::apply`] would do now. Changes nothing.
    ///
    /// # Errors
    /// [`MigrateError`].
    pub async fn plan(&self) -> Result<Vec<Pending>, MigrateError> {
        within("plan migrations", async {
            let mut connection = self.connect().await?;
            let pending = self.pending(&mut connection).await?;
            close(connection).await;
            Ok(pending)
        })
        .await
    }

    /// Applies what is missing; nothing if nothing is. Returns what was applied.
    ///
    /// # Errors
    /// [`MigrateError`]. A migration is applied as a whole or not at all.
    pub async fn apply(&self) -> Result<Vec<Pending>, MigrateError> {
        within("apply migrations", async {
            let mut connection = self.connect().await?;
            let mut applied = Vec::new();
            while let Some(migration) = self.apply_next(&mut connection).await? {
                applied.push(migration);
            }
            close(connection).await;
            Ok(applied)
        })
        .await
    }

    /// The version that is installed; `None` if there is none in this schema.
    ///
    /// # Errors
    /// [`MigrateError::Unavailable`], [`MigrateError::Refused`], [`MigrateError::Deadline`].
    pub async fn installed_version(&self) -> Result<Option<i32>, MigrateError> {
        within("read schema version", async {
            let mut connection = self.connect().await?;
            let applied = applied(&mut connection, &self.schema).await?;
            close(connection).await;
            Ok(applied.and_then(|applied| applied.last().map(|last| last.version)))
        })
        .await
    }

    /// The SQL of [`Migrator::grant`].
    #[must_use]
    pub fn grant_sql(&self, roles: &GrantRoles) -> Vec<SqlStr> {
        roles.parts(self.series).map(|(part, role)| part.grant_sql(&self.schema, role)).collect()
    }

    /// Grants each role its part of what this migrator installs. Takes nothing away.
    ///
    /// # Errors
    /// [`MigrateError::MissingRoles`] and [`MigrateError::NotGranted`] name what to do; nothing is granted then.
    pub async fn grant(&self, roles: &GrantRoles) -> Result<(), MigrateError> {
        within("grant", async {
            let mut connection = self.connect().await?;
            match applied(&mut connection, &self.schema).await? {
                Some(applied) => self.refuse_another(&applied)?,
                None => return Err(self.series.not_installed(&self.schema)),
            }
            let parts: Vec<_> = roles.parts(self.series).collect();
            refuse_missing_roles(&mut connection, &parts).await?;
            let mut transaction = connection.begin().await.map_err(database("begin"))?;
            for (part, role) in parts {
                sqlx::raw_sql(part.grant_sql(&self.schema, role))
                    .execute(&mut *transaction)
                    .await
                    .map_err(database(format!("grant to {role}")))?;
                let missing = missing_grants(&mut transaction, &self.schema, part, role.as_str())
                    .await
                    .map_err(database(format!("look at what {role} may do")))?;
                if !missing.is_empty() {
                    return Err(MigrateError::NotGranted { role: role.to_string(), missing });
                }
            }
            transaction.commit().await.map_err(database("commit grants"))?;
            close(connection).await;
            Ok(())
        })
        .await
    }

    async fn connect(&self) -> Result<PgConnection, MigrateError> {
        let doing = format!("connect to {}, as database.url says", address(&self.options));
        self.options.connect().await.map_err(database(doing))
    }

    async fn apply_next(&self, connection: &mut PgConnection) -> Result<Option<Pending>, MigrateError> {
        let mut transaction = connection.begin().await.map_err(database("begin"))?;
        sqlx::query(render(include_str!("sql/migrate_lock.sql"), &self.schema))
            .persistent(false)
            .execute(&mut *transaction)
            .await
            .map_err(database("wait for another migrate"))?;
        let Some(next) = self.pending(&mut transaction).await?.into_iter().next() else {
            return Ok(None);
        };
        sqlx::query(include_str!("sql/migrate_settings.sql"))
            .persistent(false)
            .execute(&mut *transaction)
            .await
            .map_err(database("set up session"))?;
        let doing = format!("apply migration {} ({})", next.version, next.name);
        sqlx::raw_sql(next.sql.clone()).execute(&mut *transaction).await.map_err(database(&doing))?;
        sqlx::query(render(include_str!("sql/migrate_checksum.sql"), &self.schema))
            .persistent(false)
            .bind(next.version)
            .bind(self.series.known(next.version).map(Migration::checksum))
            .execute(&mut *transaction)
            .await
            .map_err(database(&doing))?;
        transaction.commit().await.map_err(database(&doing))?;
        Ok(Some(next))
    }

    /// Fails if the server cannot take the outbox.
    async fn refuse_server(connection: &mut PgConnection) -> Result<(), MigrateError> {
        let server = sqlx::query(include_str!("sql/migrate_server.sql"))
            .persistent(false)
            .fetch_one(&mut *connection)
            .await
            .map_err(database("read server version"))?;
        if server.get::<i32, _>("version_num") < SERVER_VERSION_MIN {
            return Err(MigrateError::ServerTooOld { found: server.get("version") });
        }
        if server.get("in_recovery") {
            return Err(MigrateError::InRecovery);
        }
        Ok(())
    }

    /// Verifies what was applied and returns what was not.
    async fn pending(&self, connection: &mut PgConnection) -> Result<Vec<Pending>, MigrateError> {
        Self::refuse_server(connection).await?;
        let applied = applied(connection, &self.schema).await?.unwrap_or_default();
        self.refuse_another(&applied)?;
        for row in &applied {
            row.verify_as(self.series)?;
        }
        Ok(self
            .series
            .migrations()
            .iter()
            .filter(|migration| !applied.iter().any(|row| row.version == migration.version))
            .map(|migration| Pending {
                version: migration.version,
                name: migration.name,
                sql: render_word(migration.sql, self.series.word(), &self.schema),
            })
            .collect())
    }

    fn refuse_another(&self, applied: &[Applied]) -> Result<(), MigrateError> {
        let first = applied.first().map(|row| row.name.as_str()).unwrap_or_default();
        self.series.refuse_another(first, &self.schema)
    }
}

/// What a role is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Emits intents.
    Writer,
    /// Relays them, and acts on held messages.
    Relay,
    /// Looks.
    Reader,
    /// Claims messages.
    Consumer,
}

impl Part {
    /// The word that `migrate_missing_grants.sql` knows it by.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Writer => "writer",
            Self::Relay => "relay",
            Self::Reader => "reader",
            Self::Consumer => "consumer",
        }
    }

    fn series(self) -> Series {
        match self {
            Self::Writer | Self::Relay | Self::Reader => Series::Outbox,
            Self::Consumer => Series::Inbox,
        }
    }

    fn grant_sql(self, schema: &SchemaName, role: &RoleName) -> SqlStr {
        let (file, word) = match self {
            Self::Writer => (include_str!("sql/migrate_grant_writer.sql"), "writer_role"),
            Self::Relay => (include_str!("sql/migrate_grant_relay.sql"), "relay_role"),
            Self::Reader => (include_str!("sql/migrate_grant_reader.sql"), "reader_role"),
            Self::Consumer => (include_str!("sql/migrate_grant_consumer.sql"), "consumer_role"),
        };
        render_for_role(file, self.series().word(), schema, word, role)
    }
}

impl GrantRoles {
    fn parts(&self, series: Series) -> impl Iterator<Item = (Part, &RoleName)> {
        [
            (Part::Writer, &self.writer),
            (Part::Relay, &self.relay),
            (Part::Reader, &self.reader),
            (Part::Consumer, &self.consumer),
        ]
        .into_iter()
        .filter(move |(part, _)| part.series() == series)
        .filter_map(|(part, role)| Some((part, role.as_ref()?)))
    }
}

/// A row of the bookkeeping table.
#[derive(Debug)]
pub(crate) struct Applied {
    pub(crate) version: i32,
    pub(crate) name: String,
    pub(crate) checksum: Option<String>,
}

impl Applied {
    pub(crate) fn read(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            version: row.try_get("version")?,
            name: row.try_get("name")?,
            checksum: row.try_get("checksum")?,
        })
    }

    /// Whether this version knows the migration of the outbox and knows it by the same text. A file that another tool applied
    /// has no checksum and is taken at its word.
    pub(crate) fn verify(&self) -> Result<(), MigrateError> {
        self.verify_as(Series::Outbox)
    }

    fn verify_as(&self, series: Series) -> Result<(), MigrateError> {
        let Some(known) = series.known(self.version) else {
            return Err(MigrateError::Newer {
                version: self.version,
                name: self.name.clone(),
                known: series.migrations().last().map_or(0, |last| last.version),
            });
        };
        match &self.checksum {
            Some(applied) if *applied != known.checksum() => Err(MigrateError::Checksum {
                version: self.version,
                name: self.name.clone(),
                applied: applied.clone(),
                known: known.checksum(),
            }),
            Some(_) | None => Ok(()),
        }
    }
}

/// What was applied, ascending; `None` if there is no bookkeeping in this schema.
async fn applied(
    connection: &mut PgConnection,
    schema: &SchemaName,
) -> Result<Option<Vec<Applied>>, MigrateError> {
    let installed: bool = sqlx::query_scalar(render(include_str!("sql/migrate_installed.sql"), schema))
        .persistent(false)
        .fetch_one(&mut *connection)
        .await
        .map_err(database("look for what is installed"))?;
    if !installed {
        return Ok(None);
    }
    let rows = sqlx::query(render(include_str!("sql/migrate_applied.sql"), schema))
        .persistent(false)
        .fetch_all(&mut *connection)
        .await
        .map_err(database("read applied migrations"))?;
    let applied = rows.iter().map(Applied::read).collect::<Result<_, _>>();
    applied.map(Some).map_err(database("read applied migrations"))
}

async fn refuse_missing_roles(
    connection: &mut PgConnection,
    parts: &[(Part, &RoleName)],
) -> Result<(), MigrateError> {
    let names: Vec<&str> = parts.iter().map(|(_, role)| role.as_str()).collect();
    let missing: Vec<String> = sqlx::query_scalar(include_str!("sql/migrate_missing_roles.sql"))
        .persistent(false)
        .bind(&names)
        .fetch_all(connection)
        .await
        .map_err(database("look up roles"))?;
    if missing.is_empty() { Ok(()) } else { Err(MigrateError::MissingRoles(missing)) }
}

/// What a role lacks for its part, one line each.
async fn missing_grants(
    connection: &mut PgConnection,
    schema: &SchemaName,
    part: Part,
    role: &str,
) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar(render(include_str!("sql/migrate_missing_grants.sql"), schema))
        .persistent(false)
        .bind(role)
        .bind(part.word())
        .fetch_all(connection)
        .await
}

fn database(doing: impl Into<String>) -> impl FnOnce(sqlx::Error) -> MigrateError {
    move |source| {
        let doing = doing.into();
        let source = CallError::from(source);
        match remedy(&source) {
            Some(remedy) => MigrateError::Refused { finding: format!("{doing}: {source}"), remedy },
            None => MigrateError::Unavailable { doing, source: Box::new(source) },
        }
    }
}

/// What to do about what the server answered; nothing if it did not answer.
fn remedy(error: &CallError) -> Option<&'static str> {
    Some(match error.code()? {
        "42501" => {
            "connect as the owner of the outbox, or, to install it, let one run `grant create on database <database> to <role>`"
        }
        "42P07" | "42710" | "42723" => {
            "the schema holds something of that name already: choose another one with --schema, or move that away"
        }
        "42P01" | "42703" => {
            "the schema does not hold an outbox of this version: run `outboxd migrate`, or choose another --schema"
        }
        "55P03" => "somebody keeps a table of the outbox locked: run it again when they are done",
        _ => match error.remedy() {
            Some(remedy) => remedy,
            None => "set that right and run it again: nothing of this migration was kept",
        },
    })
}

/// Runs a command within the deadline. A connection that was in use then is dropped, which closes its socket; the server
/// rolls back.
async fn within<T>(
    doing: &'static str,
    command: impl Future<Output = Result<T, MigrateError>>,
) -> Result<T, MigrateError> {
    tokio::time::timeout(DEADLINE, Box::pin(command)).await.unwrap_or(Err(MigrateError::Deadline { doing }))
}

/// Says goodbye. What was done is committed, so a failure to say it means nothing.
async fn close(connection: PgConnection) {
    drop(connection.close().await);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_migrations_are_the_files_of_their_directories() {
        for (series, directory) in [(Series::Outbox, "postgres"), (Series::Inbox, "inbox/postgres")] {
            let directory = format!("{}/../../migrations/{directory}", env!("CARGO_MANIFEST_DIR"));
            let mut files: Vec<String> = std::fs::read_dir(directory)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            files.sort();
            let known: Vec<String> = series
                .migrations()
                .iter()
                .map(|migration| format!("{:04}_{}.sql", migration.version, migration.name))
                .collect();
            assert_eq!(files, known);
        }
    }

    #[test]
    fn the_last_migration_is_the_version_that_the_relay_was_built_for() {
        assert_eq!(MIGRATIONS.last().unwrap().version, SCHEMA_VERSION);
        assert!(
            (SCHEMA_VERSION - 1..=SCHEMA_VERSION).contains(&SCHEMA_VERSION_MIN) && SCHEMA_VERSION_MIN >= 1
        );
    }

    #[test]
    fn every_migration_says_what_an_operator_sees_and_records_itself() {
        for series in [Series::Outbox, Series::Inbox] {
            for Migration { version, name, sql } in series.migrations() {
                let head: String = sql.lines().take_while(|line| line.starts_with("--")).collect();
                assert!(head.contains("hat an operator sees"), "{name}");
                let table = format!("{}.migration", series.word());
                let record = format!("insert into {table} (version, name) values ({version}, '{name}');");
                assert!(sql.contains(&record), "{name}");
            }
        }
    }
}
