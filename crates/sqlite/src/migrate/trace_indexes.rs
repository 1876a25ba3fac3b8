//! The indexes that trace uses: optional, because every insert of the application pays for each of them.
//!
//! Each is built in a transaction of its own, so that the application's writes wait for one of them at a time; and without the deadline of
//! the other commands, because a large file takes long.

use sqlx::SqliteConnection;

use super::{MigrateError, Migrator, Missing, close, connect, database, version_of};

/// Every index that trace uses.
pub(crate) const TRACE_INDEXES: [&str; 5] = [
    "outbox_message_id",
    "outbox_message_correlation",
    "outbox_message_causation",
    "outbox_message_trace",
    "outbox_message_key",
];

const CREATE: &str = include_str!("../../../../migrations/trace-indexes/sqlite.sql");
const DROP: &str = include_str!("../../../../migrations/trace-indexes/sqlite-drop.sql");

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TraceIndexes {
    /// All of them.
    Wanted,
    /// None of them.
    Unwanted,
}

/// What becomes of an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IndexAction {
    /// It is built.
    Build,
    /// It is dropped.
    Drop,
    /// It is as it should be.
    Nothing,
}

/// An index, what becomes of it, and the statement that does it.
#[derive(Clone, Copy, Debug)]
pub struct IndexStep {
    /// Its name.
    pub index: &'static str,
    /// What becomes of it.
    pub action: IndexAction,
    /// What is executed.
    pub sql: Option<&'static str>,
}

impl Migrator {
    /// What [`Migrator::change_trace_indexes`] would do now. Changes nothing.
    ///
    /// # Errors
    /// [`MigrateError`]; also if there is no outbox in the file.
    pub async fn plan_trace_indexes(&self, change: TraceIndexes) -> Result<Vec<IndexStep>, MigrateError> {
        self.within("look at the indexes", async {
            let mut connection = connect(&self.config, Missing::Fail).await?;
            let steps = self.index_steps(&mut connection, change).await?;
            close(connection).await;
            Ok(steps)
        })
        .await
    }

    /// Builds or drops the indexes, telling about each before it begins. Returns what was done.
    ///
    /// # Errors
    /// [`MigrateError`]. The indexes before the one that failed are as was asked for; the same call goes on from there.
    pub async fn change_trace_indexes(
        &self,
        change: TraceIndexes,
        mut tell: impl FnMut(&IndexStep),
    ) -> Result<Vec<IndexStep>, MigrateError> {
        let (mut connection, steps) = self
            .within("look at the indexes", async {
                let mut connection = connect(&self.config, Missing::Fail).await?;
                let steps = self.index_steps(&mut connection, change).await?;
                Ok((connection, steps))
            })
            .await?;
        for step in &steps {
            let Some(sql) = step.sql else { continue };
            tell(step);
            sqlx::raw_sql(sql)
                .execute(&mut connection)
                .await
                .map_err(database(format!("index {}", step.index)))?;
        }
        close(connection).await;
        Ok(steps)
    }

    async fn index_steps(
        &self,
        connection: &mut SqliteConnection,
        change: TraceIndexes,
    ) -> Result<Vec<IndexStep>, MigrateError> {
        const DOING: &str = "look at the indexes";
        if version_of(connection).await.map_err(database(DOING))?.is_none() {
            return Err(MigrateError::NotInstalled(self.config.path.display().to_string()));
        }
        let missing = missing(connection).await.map_err(database(DOING))?;
        Ok(TRACE_INDEXES
            .into_iter()
            .map(|index| {
                let (action, script) = match (change, missing.contains(&index)) {
                    (TraceIndexes::Wanted, true) => (IndexAction::Build, CREATE),
                    (TraceIndexes::Unwanted, false) => (IndexAction::Drop, DROP),
                    (TraceIndexes::Wanted, false) | (TraceIndexes::Unwanted, true) => {
                        return IndexStep { index, action: IndexAction::Nothing, sql: None };
                    }
                };
                IndexStep { index, action, sql: statement_about(script, index) }
            })
            .collect())
    }
}

/// Which of them are not there.
pub(crate) async fn missing(connection: &mut SqliteConnection) -> Result<Vec<&'static str>, sqlx::Error> {
    let there: Vec<String> =
        sqlx::query_scalar(include_str!("../sql/trace_indexes.sql")).fetch_all(connection).await?;
    Ok(TRACE_INDEXES.into_iter().filter(|index| !there.iter().any(|name| name == index)).collect())
}

/// The statement of a script that creates or drops this index. Each is one line.
fn statement_about(script: &'static str, index: &str) -> Option<&'static str> {
    let is_about = |line: &&str| {
        !line.starts_with("--")
            && line.split(|letter: char| !letter.is_alphanumeric() && letter != '_').any(|word| word == index)
    };
    script.lines().find(is_about)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scripts_create_and_drop_every_index_and_nothing_else() {
        for (script, begins) in [(CREATE, "create index if not exists "), (DROP, "drop index if exists ")] {
            let statements: Vec<&str> =
                script.lines().filter(|line| !line.is_empty() && !line.starts_with("--")).collect();
            let found: Vec<&str> =
                TRACE_INDEXES.into_iter().filter_map(|index| statement_about(script, index)).collect();
            assert_eq!(found, statements);
            assert!(found.iter().all(|sql| sql.starts_with(begins) && sql.ends_with(';')), "{found:?}");
        }
    }
}
