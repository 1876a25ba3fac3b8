//! The indexes that trace uses: optional, because every insert of the application pays for each of them.
//!
//! They are built and dropped `CONCURRENTLY`, outside of a transaction, so no writer waits; and without the deadline of the other commands,
//! because a build waits for every transaction that was open when it began. What notices a server that does not answer is the question how
//! far it is, on a connection of its own.

use std::convert::Infallible;
use std::time::Duration;

use serde::Serialize;
use sqlx::postgres::PgConnection;
use sqlx::{Row, SqlStr};

use super::{MigrateError, Migrator, applied, close, database, within};
use crate::schema::render;
use crate::session::CallError;

/// Every index that trace uses.
pub(crate) const TRACE_INDEXES: [&str; 5] =
    ["message_id", "message_correlation", "message_causation", "message_trace", "message_key"];

const CREATE: &str = include_str!("../../../../migrations/trace-indexes/postgres.sql");
const DROP: &str = include_str!("../../../../migrations/trace-indexes/postgres-drop.sql");

/// Between two looks at how far a build is.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TraceIndexes {
    /// All of them, valid.
    Wanted,
    /// None of them.
    Unwanted,
}

/// What becomes of an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum IndexAction {
    /// It is built.
    Build,
    /// What an interrupted build left is dropped, and it is built.
    Rebuild,
    /// It is dropped.
    Drop,
    /// It is as it should be.
    Nothing,
}

/// An index, what becomes of it, and the statements that do it, one transaction each.
#[derive(Clone, Debug)]
pub struct IndexStep {
    /// Its name.
    pub index: &'static str,
    /// What becomes of it.
    pub action: IndexAction,
    /// What is executed.
    pub sql: Vec<SqlStr>,
}

/// How far a build is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildProgress {
    /// In the server's words.
    pub phase: String,
    /// Of this phase.
    pub percent: Option<i32>,
    /// The session whose transaction must end first.
    pub waits_for: Option<String>,
}

impl Migrator {
    /// What [`Migrator::change_trace_indexes`] would do now. Changes nothing.
    ///
    /// # Errors
    /// [`MigrateError`]; also if somebody builds an index on the messages: what is not valid now may be so in a moment.
    pub async fn plan_trace_indexes(&self, change: TraceIndexes) -> Result<Vec<IndexStep>, MigrateError> {
        within("look at the indexes", async {
            let mut connection = self.connect().await?;
            let steps = self.index_steps(&mut connection, change).await?;
            close(connection).await;
            Ok(steps)
        })
        .await
    }

    /// Builds or drops the indexes, telling about each before it begins and while it goes on. Returns what was done.
    ///
    /// # Errors
    /// [`MigrateError`]. The indexes before the one that failed are as was asked for; the same call goes on from there.
    pub async fn change_trace_indexes(
        &self,
        change: TraceIndexes,
        mut tell: impl FnMut(&IndexStep, Option<BuildProgress>),
    ) -> Result<Vec<IndexStep>, MigrateError> {
        let (mut connection, backend, steps) = within("look at the indexes", async {
            let mut connection = self.connect().await?;
            let steps = self.index_steps(&mut connection, change).await?;
            let backend = set_up(&mut connection).await.map_err(database("set up session"))?;
            Ok((connection, backend, steps))
        })
        .await?;
        for step in &steps {
            if step.action != IndexAction::Nothing {
                tell(step, None);
            }
            for sql in &step.sql {
                // Either branch that is dropped closes its connection, which ends what the server was doing for it.
                let done = tokio::select! {
                    biased;
                    done = sqlx::raw_sql(sql.clone()).execute(&mut connection) => done,
                    lost = self.watch(backend, |progress| tell(step, Some(progress))) => match lost? {},
                };
                done.map_err(|error| failed(step.index, error))?;
            }
        }
        close(connection).await;
        Ok(steps)
    }

    async fn index_steps(
        &self,
        connection: &mut PgConnection,
        change: TraceIndexes,
    ) -> Result<Vec<IndexStep>, MigrateError> {
        const DOING: &str = "look at the indexes";
        Self::refuse_server(connection).await?;
        match applied(connection, &self.schema).await? {
            Some(applied) => self.refuse_another(&applied)?,
            None => return Err(self.series.not_installed(&self.schema)),
        }
        let rows = sqlx::query(render(include_str!("../sql/trace_indexes_state.sql"), &self.schema))
            .persistent(false)
            .bind(TRACE_INDEXES)
            .fetch_all(connection)
            .await
            .map_err(database(DOING))?;
        let mut found = Vec::new();
        for row in rows {
            let column = || -> Result<(String, bool, Option<i32>), sqlx::Error> {
                Ok((row.try_get("name")?, row.try_get("valid")?, row.try_get("builder")?))
            };
            let (name, valid, builder) = column().map_err(database(DOING))?;
            if let (false, Some(builder)) = (valid, builder) {
                return Err(MigrateError::Refused {
                    finding: format!("backend {builder} is building an index on the messages"),
                    remedy: "wait until pg_stat_progress_create_index shows nothing, and run this again",
                });
            }
            found.push((name, valid));
        }
        Ok(TRACE_INDEXES
            .into_iter()
            .map(|index| {
                let valid = found.iter().find(|(name, _)| name == index).map(|(_, valid)| *valid);
                self.index_step(index, valid, change)
            })
            .collect())
    }

    /// `valid`: whether it is, if it is there.
    fn index_step(&self, index: &'static str, valid: Option<bool>, change: TraceIndexes) -> IndexStep {
        let (action, sql) = match (change, valid) {
            (TraceIndexes::Wanted, Some(true)) | (TraceIndexes::Unwanted, None) => {
                (IndexAction::Nothing, vec![])
            }
            (TraceIndexes::Wanted, None) => (IndexAction::Build, vec![CREATE]),
            (TraceIndexes::Wanted, Some(false)) => (IndexAction::Rebuild, vec![DROP, CREATE]),
            (TraceIndexes::Unwanted, Some(_)) => (IndexAction::Drop, vec![DROP]),
        };
        let sql = sql
            .into_iter()
            .flat_map(statements)
            .filter(|statement| is_about(statement, index))
            .map(|statement| render(statement, &self.schema))
            .collect();
        IndexStep { index, action, sql }
    }

    /// Tells how far the build of this backend is, for as long as the server answers.
    async fn watch(
        &self,
        backend: i32,
        mut tell: impl FnMut(BuildProgress),
    ) -> Result<Infallible, MigrateError> {
        const DOING: &str = "look how far the index is";
        let mut connection = within(DOING, self.connect()).await?;
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let row = within(DOING, async {
                sqlx::query(include_str!("../sql/trace_indexes_progress.sql"))
                    .persistent(false)
                    .bind(backend)
                    .fetch_optional(&mut connection)
                    .await
                    .map_err(database(DOING))
            })
            .await?;
            let read = |row: sqlx::postgres::PgRow| -> Result<BuildProgress, sqlx::Error> {
                Ok(BuildProgress {
                    phase: row.try_get("phase")?,
                    percent: row.try_get("percent")?,
                    waits_for: row.try_get("waits_for")?,
                })
            };
            if let Some(progress) = row.map(read).transpose().map_err(database(DOING))? {
                tell(progress);
            }
        }
    }
}

/// The settings that a build needs, and the backend that has them. Nobody waits behind a build, so it may wait; and it ends with its client.
async fn set_up(connection: &mut PgConnection) -> Result<i32, sqlx::Error> {
    let settings = [
        ("search_path", ""),
        ("statement_timeout", "0"),
        ("lock_timeout", "0"),
        ("idle_session_timeout", "0"),
        ("client_connection_check_interval", "2000"),
    ];
    let (names, values): (Vec<_>, Vec<_>) = settings.into_iter().unzip();
    sqlx::query(include_str!("../sql/session_settings.sql"))
        .persistent(false)
        .bind(names)
        .bind(values)
        .execute(&mut *connection)
        .await?;
    sqlx::query_scalar("select pg_catalog.pg_backend_pid()").persistent(false).fetch_one(connection).await
}

/// The statements of a script, without the comments before them.
fn statements(script: &'static str) -> impl Iterator<Item = &'static str> {
    script.split_inclusive(";\n").filter_map(|part| {
        let begin = part
            .split_inclusive('\n')
            .take_while(|line| line.starts_with("--") || line.trim().is_empty())
            .map(str::len)
            .sum::<usize>();
        Some(part[begin..].trim_end()).filter(|statement| !statement.is_empty())
    })
}

/// Whether a statement of the scripts creates, comments or drops this index.
fn is_about(statement: &str, index: &str) -> bool {
    statement.split(|letter: char| !letter.is_alphanumeric() && letter != '_').any(|word| word == index)
}

fn failed(index: &str, error: sqlx::Error) -> MigrateError {
    let doing = format!("index {index}");
    let source = CallError::from(error);
    let remedy = match source.code() {
        Some("42501") => "connect as the owner of the outbox: --database-url postgres://<owner>@...",
        Some(_) => {
            "set that right and run this again: it drops what is left of that index and goes on from there"
        }
        None => return MigrateError::Unavailable { doing, source: Box::new(source) },
    };
    MigrateError::Refused { finding: format!("{doing}: {source}"), remedy }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scripts_create_comment_and_drop_every_index_and_nothing_else() {
        let about = |script, begins: &str| -> Vec<&str> {
            let of_kind: Vec<_> = statements(script).filter(|sql| sql.starts_with(begins)).collect();
            assert!(of_kind.len() <= TRACE_INDEXES.len(), "{of_kind:?}");
            let found = |index: &&str| of_kind.iter().filter(|sql| is_about(sql, index)).count() == 1;
            TRACE_INDEXES.into_iter().filter(found).collect()
        };
        assert_eq!(about(CREATE, "create index concurrently if not exists "), TRACE_INDEXES);
        assert_eq!(about(CREATE, "comment on index outbox."), TRACE_INDEXES);
        assert_eq!(about(DROP, "drop index concurrently if exists outbox."), TRACE_INDEXES);
        assert_eq!((statements(CREATE).count(), statements(DROP).count()), (10, 5));
    }
}
