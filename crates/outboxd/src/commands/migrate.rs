//! `migrate` and `migrate grants`.

use anyhow::{Context as _, anyhow};
use outboxd_postgres::migrate::{GrantRoles, MigrateError as PostgresError, Migrator};
use outboxd_postgres::schema::RoleName;
use outboxd_sqlite::migrate::MigrateError as SqliteError;
use serde::Serialize;
use serde_json::json;

use crate::adapters::Adapter;
use crate::cli::{Format, Grants, Migrate};
use crate::failure::Failure;
use crate::output;

/// A migration that was applied, or is to be: then with its SQL.
#[derive(Debug, Serialize)]
struct Step<'a> {
    version: i32,
    name: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    sql: Option<&'a str>,
}

/// What a role was given, or is to be.
#[derive(Debug, Serialize)]
struct Granted<'a> {
    role: &'a str,
    part: &'static str,
}

/// Installs the outbox or the inbox or brings it up to date; with `--dry-run`, prints the SQL of what is missing.
pub(crate) async fn migrate(adapter: Adapter, asked: &Migrate) -> Result<(), Failure> {
    let (dry_run, format) = (asked.dry_run, asked.output.output);
    let what = if asked.inbox { "inbox" } else { "outbox" };
    match adapter {
        Adapter::Postgres(config) => {
            let place = format!("schema {}", config.schema);
            let new = if asked.inbox { Migrator::inbox } else { Migrator::new };
            let migrator = new(config.options().clone(), config.schema.clone());
            if dry_run {
                let pending = migrator.plan().await.map_err(postgres_failure)?;
                let steps = pending.iter().map(|step| (step.version, step.name, step.sql.as_str()));
                return planned(format, what, &place, steps);
            }
            let applied = migrator.apply().await.map_err(postgres_failure)?;
            report(format, what, &place, applied.iter().map(|applied| (applied.version, applied.name)))
        }
        Adapter::Sqlite(_) if asked.schema.is_some() => {
            Err(Failure::usage(anyhow!("SQLite has no schemas: leave --schema out, or name another file")))
        }
        Adapter::Sqlite(config) => {
            let place = config.path.display().to_string();
            let new =
                if asked.inbox { outboxd_sqlite::Migrator::inbox } else { outboxd_sqlite::Migrator::new };
            let migrator = new(config);
            if dry_run {
                let pending = migrator.plan().await.map_err(sqlite_failure)?;
                let steps = pending.iter().map(|step| (step.version, step.name, step.sql));
                return planned(format, what, &place, steps);
            }
            let applied = migrator.apply().await.map_err(sqlite_failure)?;
            report(format, what, &place, applied.iter().map(|applied| (applied.version, applied.name)))
        }
    }
}

/// Grants each role its part; with `--dry-run`, prints the SQL.
pub(crate) async fn grants(adapter: Adapter, asked: &Grants) -> Result<(), Failure> {
    let Adapter::Postgres(config) = adapter else {
        return Err(Failure::usage(anyhow!(
            "SQLite has no roles: whoever may write the file may do everything"
        )));
    };
    let roles = GrantRoles {
        writer: role("--writer", asked.writer.as_deref())?,
        relay: role("--relay", asked.relay.as_deref())?,
        reader: role("--reader", asked.reader.as_deref())?,
        consumer: role("--consumer", asked.consumer.as_deref())?,
    };
    let new = if roles.consumer.is_some() { Migrator::inbox } else { Migrator::new };
    let migrator = new(config.options().clone(), config.schema.clone());
    let format = asked.output.output;
    if asked.dry_run {
        let statements = migrator.grant_sql(&roles);
        let statements: Vec<&str> = statements.iter().map(|sql| sql.as_str()).collect();
        return Ok(output::answer(format, &json!({ "sql": statements }), |_| statements.join("\n"))?);
    }
    migrator.grant(&roles).await.map_err(postgres_failure)?;
    let parts = [
        ("writer", &roles.writer),
        ("relay", &roles.relay),
        ("reader", &roles.reader),
        ("consumer", &roles.consumer),
    ];
    let granted: Vec<Granted<'_>> = parts
        .into_iter()
        .filter_map(|(part, role)| Some(Granted { role: role.as_ref()?.as_str(), part }))
        .collect();
    Ok(output::answer(format, &json!({ "granted": granted }), |_| {
        granted.iter().map(|granted| format!("{} may act as {}\n", granted.role, granted.part)).collect()
    })?)
}

fn role(flag: &str, name: Option<&str>) -> Result<Option<RoleName>, Failure> {
    name.map(str::parse).transpose().with_context(|| flag.to_owned()).map_err(Failure::usage)
}

fn planned<'a>(
    format: Format,
    what: &str,
    place: &str,
    steps: impl Iterator<Item = (i32, &'static str, &'a str)>,
) -> Result<(), Failure> {
    let steps: Vec<_> = steps.map(|(version, name, sql)| Step { version, name, sql: Some(sql) }).collect();
    Ok(output::answer(format, &json!({ "place": place, "pending": steps }), |_| {
        if steps.is_empty() {
            return format!("-- the {what} is up to date: nothing to execute");
        }
        steps.iter().filter_map(|step| step.sql).collect::<Vec<_>>().join("\n")
    })?)
}

fn report(
    format: Format,
    what: &str,
    place: &str,
    applied: impl Iterator<Item = (i32, &'static str)>,
) -> Result<(), Failure> {
    let applied: Vec<_> = applied.map(|(version, name)| Step { version, name, sql: None }).collect();
    Ok(output::answer(format, &json!({ "place": place, "applied": applied }), |_| {
        if applied.is_empty() {
            return format!("the {what} in {place} is up to date");
        }
        let line =
            |step: &Step<'_>| format!("applied migration {} ({}) in {place}\n", step.version, step.name);
        applied.iter().map(line).collect()
    })?)
}

/// Out of reach is told apart from what somebody must set right.
pub(super) fn postgres_failure(error: PostgresError) -> Failure {
    match &error {
        PostgresError::Deadline { .. } | PostgresError::Unavailable { .. } => Failure::unavailable(error),
        PostgresError::Refused { .. }
        | PostgresError::ServerTooOld { .. }
        | PostgresError::InRecovery
        | PostgresError::Newer { .. }
        | PostgresError::Checksum { .. }
        | PostgresError::NotInstalled(_)
        | PostgresError::NoInbox(_)
        | PostgresError::Taken { .. }
        | PostgresError::MissingRoles(_)
        | PostgresError::NotGranted { .. } => Failure::config(error),
    }
}

pub(super) fn sqlite_failure(error: SqliteError) -> Failure {
    match &error {
        SqliteError::Deadline { .. } => Failure::unavailable(error),
        SqliteError::Database { source, .. } => match source {
            sqlx::Error::Configuration(_) => Failure::config(error),
            _unreachable => Failure::unavailable(error),
        },
        SqliteError::Changed { .. }
        | SqliteError::NotInstalled(_)
        | SqliteError::Newer { .. }
        | SqliteError::Encoding { .. }
        | SqliteError::JournalMode { .. } => Failure::config(error),
    }
}
