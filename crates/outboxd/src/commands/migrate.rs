//! `migrate` and `migrate grants`.

use anyhow::{Context as _, anyhow};
use outboxd_postgres::migrate::{GrantRoles, MigrateError as PostgresError, Migrator};
use outboxd_postgres::schema::RoleName;
use outboxd_sqlite::migrate::MigrateError as SqliteError;

use crate::adapters::Adapter;
use crate::cli::Grants;
use crate::failure::Failure;
use crate::output;

/// Installs the outbox or brings it up to date; with `dry_run`, prints the SQL of what is missing.
pub(crate) async fn migrate(adapter: Adapter, dry_run: bool) -> Result<(), Failure> {
    match adapter {
        Adapter::Postgres(config) => {
            let place = format!("schema {}", config.schema);
            let migrator = Migrator::new(config.options().clone(), config.schema.clone());
            if dry_run {
                let pending = migrator.plan().await.map_err(postgres_failure)?;
                return print_sql(pending.iter().map(|pending| pending.sql.as_str()));
            }
            let applied = migrator.apply().await.map_err(postgres_failure)?;
            report(&place, applied.iter().map(|applied| (applied.version, applied.name)))
        }
        Adapter::Sqlite(config) => {
            let place = config.path.display().to_string();
            let migrator = outboxd_sqlite::Migrator::new(config);
            if dry_run {
                let pending = migrator.plan().await.map_err(sqlite_failure)?;
                return print_sql(pending.iter().map(|pending| pending.sql));
            }
            let applied = migrator.apply().await.map_err(sqlite_failure)?;
            report(&place, applied.iter().map(|applied| (applied.version, applied.name)))
        }
    }
}

/// Grants each role its part; with `dry_run`, prints the SQL.
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
    };
    let migrator = Migrator::new(config.options().clone(), config.schema.clone());
    if asked.dry_run {
        return print_sql(migrator.grant_sql(&roles).iter().map(|sql| sql.as_str()));
    }
    migrator.grant(&roles).await.map_err(postgres_failure)?;
    let parts = [("writer", &roles.writer), ("relay", &roles.relay), ("reader", &roles.reader)];
    let granted: String = parts
        .into_iter()
        .filter_map(|(part, role)| Some(format!("{} may act as {part}\n", role.as_ref()?.as_str())))
        .collect();
    Ok(output::print(&granted)?)
}

fn role(flag: &str, name: Option<&str>) -> Result<Option<RoleName>, Failure> {
    name.map(str::parse).transpose().with_context(|| flag.to_owned()).map_err(Failure::usage)
}

fn print_sql<'a>(files: impl Iterator<Item = &'a str>) -> Result<(), Failure> {
    let text = files.collect::<Vec<_>>().join("\n");
    let text = if text.is_empty() { "-- the outbox is up to date: nothing to execute" } else { &text };
    Ok(output::print(text)?)
}

fn report(place: &str, applied: impl Iterator<Item = (i32, &'static str)>) -> Result<(), Failure> {
    let lines: String =
        applied.map(|(version, name)| format!("applied migration {version} ({name}) in {place}\n")).collect();
    let lines = if lines.is_empty() { format!("the outbox in {place} is up to date") } else { lines };
    Ok(output::print(&lines)?)
}

/// Out of reach is told apart from what somebody must set right.
fn postgres_failure(error: PostgresError) -> Failure {
    match &error {
        PostgresError::Deadline { .. } | PostgresError::Unavailable { .. } => Failure::unavailable(error),
        PostgresError::Refused { .. }
        | PostgresError::ServerTooOld { .. }
        | PostgresError::InRecovery
        | PostgresError::Newer { .. }
        | PostgresError::Checksum { .. }
        | PostgresError::NotInstalled(_)
        | PostgresError::MissingRoles(_)
        | PostgresError::NotGranted { .. } => Failure::config(error),
    }
}

fn sqlite_failure(error: SqliteError) -> Failure {
    match &error {
        SqliteError::Deadline { .. } => Failure::unavailable(error),
        SqliteError::Database { source, .. } => match source {
            sqlx::Error::Configuration(_) => Failure::config(error),
            _unreachable => Failure::unavailable(error),
        },
        SqliteError::Changed { .. }
        | SqliteError::Newer { .. }
        | SqliteError::Encoding { .. }
        | SqliteError::JournalMode { .. } => Failure::config(error),
    }
}
