//! The shop's database: the same questions to SQLite and to PostgreSQL.
//!
//! Statements for PostgreSQL say schema `outbox` and are rendered for the demo's own schema, which also holds the shop's
//! table, so that dropping the schema leaves nothing behind.

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use outboxd_postgres::PostgresConfig;
use outboxd_postgres::schema::{SchemaName, render};
use outboxd_sqlite::SqliteConfig;
use sqlx::postgres::PgRow;
use sqlx::sqlite::SqliteRow;
use sqlx::{ConnectOptions, Connection, FromRow, PgConnection, SqliteConnection};

/// One question in both dialects.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Statement {
    pub(crate) sqlite: &'static str,
    pub(crate) postgres: &'static str,
}

/// A value to be bound.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Value<'a> {
    Text(&'a str),
    Number(i64),
}

/// Where the database is.
#[derive(Clone, Debug)]
pub(crate) enum Database {
    /// A file of the demo's own.
    Sqlite {
        /// The file.
        path: PathBuf,
    },
    /// A schema of the demo's own on somebody's server.
    Postgres {
        /// How to get there.
        config: Box<PostgresConfig>,
        /// The schema.
        schema: SchemaName,
    },
}

const SHOP_TABLE: Statement = Statement {
    sqlite: "create table shop_order (number integer primary key, cents integer not null, state text not null)",
    postgres: "create table outbox.shop_order (number bigint primary key, cents bigint not null, state text not null)",
};

impl Database {
    /// Installs the outbox as `outboxd migrate` would, and the shop's own table beside it.
    pub(crate) async fn install(&self) -> anyhow::Result<()> {
        match self {
            Self::Sqlite { path } => {
                let migrator = outboxd_sqlite::Migrator::new(SqliteConfig::new(path));
                migrator.apply().await.context("install the outbox")?;
            }
            Self::Postgres { config, schema } => {
                outboxd_postgres::migrate::Migrator::new(config.options().clone(), schema.clone())
                    .apply()
                    .await
                    .context("install the outbox")?;
            }
        }
        self.session().await?.execute(&SHOP_TABLE, &[]).await.context("create the shop's table")?;
        Ok(())
    }

    /// Takes everything out again.
    pub(crate) async fn remove(&self) -> anyhow::Result<()> {
        match self {
            // The file goes with its directory.
            Self::Sqlite { .. } => Ok(()),
            Self::Postgres { config, schema } => {
                const DOING: &str = "drop the demo's schema";
                let mut connection = config.options().connect().await.context(DOING)?;
                sqlx::query(render("drop schema if exists outbox cascade", schema))
                    .execute(&mut connection)
                    .await
                    .context(DOING)?;
                Ok(())
            }
        }
    }

    /// How it is called on the screen: without a password.
    pub(crate) fn shown(&self) -> String {
        match self {
            Self::Sqlite { path } => format!("SQLite in {}", path.display()),
            Self::Postgres { config, schema } => {
                let options = config.options();
                format!("PostgreSQL at {}:{}, schema {schema}", options.get_host(), options.get_port())
            }
        }
    }

    /// A session of one's own.
    pub(crate) async fn session(&self) -> anyhow::Result<Session> {
        const DOING: &str = "connect to the database";
        match self {
            Self::Sqlite { path } => {
                let options = sqlx::sqlite::SqliteConnectOptions::new()
                    .filename(path)
                    .busy_timeout(std::time::Duration::from_secs(10))
                    .disable_statement_logging();
                Ok(Session::Sqlite(options.connect().await.context(DOING)?))
            }
            Self::Postgres { config, schema } => {
                let options = config.options().clone().application_name("outboxd demo");
                Ok(Session::Postgres(options.connect().await.context(DOING)?, schema.clone()))
            }
        }
    }

    /// What the relay and the operator's commands are told about it. The URL may hold a password: it goes into their
    /// environment and never into an argument.
    pub(crate) fn environment(&self, url: Option<&str>) -> Vec<(String, String)> {
        let own = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        match self {
            Self::Sqlite { path } => {
                vec![own("OUTBOXD__DATABASE__URL", &format!("sqlite:{}", path.display()))]
            }
            Self::Postgres { schema, .. } => vec![
                own("OUTBOXD__DATABASE__URL", url.unwrap_or_default()),
                own("OUTBOXD__DATABASE__SCHEMA", schema.as_str()),
            ],
        }
    }
}

/// One connection.
#[derive(Debug)]
pub(crate) enum Session {
    Sqlite(SqliteConnection),
    Postgres(PgConnection, SchemaName),
}

/// A row that both databases can give.
pub(crate) trait Fetched:
    for<'r> FromRow<'r, SqliteRow> + for<'r> FromRow<'r, PgRow> + Send + Unpin
{
}

impl<T> Fetched for T where T: for<'r> FromRow<'r, SqliteRow> + for<'r> FromRow<'r, PgRow> + Send + Unpin {}

/// Binds values; a macro because the two query types share no trait that has `bind`.
macro_rules! bound {
    ($query:expr, $values:expr) => {{
        let mut query = $query;
        for value in $values {
            query = match value {
                Value::Text(text) => query.bind((*text).to_owned()),
                Value::Number(number) => query.bind(*number),
            };
        }
        query
    }};
}

impl Session {
    /// Every row of the answer.
    pub(crate) async fn rows<T: Fetched>(
        &mut self,
        statement: &Statement,
        values: &[Value<'_>],
    ) -> Result<Vec<T>, sqlx::Error> {
        match self {
            Self::Sqlite(connection) => {
                bound!(sqlx::query_as(statement.sqlite), values).fetch_all(connection).await
            }
            Self::Postgres(connection, schema) => {
                bound!(sqlx::query_as(render(statement.postgres, schema)), values).fetch_all(connection).await
            }
        }
    }

    /// The one row of the answer.
    pub(crate) async fn row<T: Fetched>(
        &mut self,
        statement: &Statement,
        values: &[Value<'_>],
    ) -> anyhow::Result<T> {
        let rows = self.rows(statement, values).await?;
        let count = rows.len();
        match rows.into_iter().next() {
            Some(row) if count == 1 => Ok(row),
            _other => bail!("{count} rows instead of one: {}", statement.sqlite),
        }
    }

    /// How many rows were written.
    pub(crate) async fn execute(
        &mut self,
        statement: &Statement,
        values: &[Value<'_>],
    ) -> Result<u64, sqlx::Error> {
        Ok(match self {
            Self::Sqlite(connection) => {
                bound!(sqlx::query(statement.sqlite), values).execute(connection).await?.rows_affected()
            }
            Self::Postgres(connection, schema) => {
                bound!(sqlx::query(render(statement.postgres, schema)), values)
                    .execute(connection)
                    .await?
                    .rows_affected()
            }
        })
    }

    /// Says goodbye. What cannot be closed is dropped.
    pub(crate) async fn close(self) {
        let _closed = match self {
            Self::Sqlite(connection) => connection.close().await,
            Self::Postgres(connection, _) => connection.close().await,
        };
    }
}
