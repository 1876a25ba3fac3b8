//! A fresh database on the shared server.

use anyhow::{Context, Result};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use uuid::Uuid;

use crate::shared;

/// A database of one test, with roles of its own; both are dropped with this value, as far as the server lets us.
#[derive(Debug)]
pub struct Database {
    server: String,
    name: String,
    roles: std::sync::Mutex<Vec<String>>,
}

impl Database {
    /// Creates an empty database on the shared server.
    ///
    /// # Panics
    /// There is no shared server, or it does not let us.
    pub async fn create() -> Self {
        Self::create_on(&shared::postgres_url()).await.expect("create a database on the shared PostgreSQL")
    }

    /// Creates an empty database on the server of this superuser's URL.
    ///
    /// # Errors
    /// The server does not answer or does not let us.
    pub async fn create_on(server: &str) -> Result<Self> {
        let name = format!("outboxd_test_{}", Uuid::new_v4().simple());
        execute(server, &[format!("create database {name}")]).await?;
        Ok(Self { server: server.to_owned(), name, roles: std::sync::Mutex::default() })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The superuser's URL.
    #[must_use]
    pub fn url(&self) -> String {
        with_database(&self.server, &self.name)
    }

    /// The URL for a role that needs no password.
    #[must_use]
    pub fn url_as(&self, role: &str) -> String {
        with_user(&self.url(), role)
    }

    /// Creates a role that may log in and nothing else, with a name of its own (roles belong to the whole server). It goes
    /// with the database.
    ///
    /// # Panics
    /// The server does not let us.
    pub async fn role(&self, purpose: &str) -> String {
        let role = format!("{purpose}_{}", Uuid::new_v4().simple());
        execute(&self.url(), &[format!("create role {role} login")]).await.expect("create a role");
        self.roles.lock().expect("no test panics while it holds this").push(role.clone());
        role
    }

    /// A connection as the superuser.
    ///
    /// # Panics
    /// The server does not let us.
    pub async fn connect(&self) -> PgConnection {
        PgConnection::connect(&self.url()).await.expect("connect to the test's database")
    }

    /// A connection as a role.
    ///
    /// # Panics
    /// The server does not let us.
    pub async fn connect_as(&self, role: &str) -> PgConnection {
        PgConnection::connect(&self.url_as(role)).await.expect("connect to the test's database as a role")
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let server = self.server.clone();
        let mut statements = vec![format!("drop database if exists {} with (force)", self.name)];
        let roles =
            std::mem::take(&mut *self.roles.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
        statements.extend(roles.iter().map(|role| format!("drop role if exists {role}")));
        // A thread of its own, because a drop inside a runtime cannot block on it. What fails here goes with the server.
        let cleaner = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.map(|runtime| runtime.block_on(execute(&server, &statements)))
        });
        drop(cleaner.join());
    }
}

/// The same server and user, another database.
#[must_use]
pub fn with_database(url: &str, database: &str) -> String {
    let (address, parameters) = match url.split_once('?') {
        Some((address, parameters)) => (address, format!("?{parameters}")),
        None => (url, String::new()),
    };
    let (scheme, rest) = address.split_once("://").unwrap_or(("postgres", address));
    let authority = rest.split('/').next().unwrap_or(rest);
    format!("{scheme}://{authority}/{database}{parameters}")
}

/// The same server and database, another user and no password.
#[must_use]
pub fn with_user(url: &str, user: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("postgres", url));
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    format!("{scheme}://{user}@{host}/{path}")
}

async fn execute(url: &str, statements: &[String]) -> Result<()> {
    let mut connection = PgConnection::connect(url).await.with_context(|| format!("connect to {url}"))?;
    for statement in statements {
        // Names are made here: a word and hex digits.
        sqlx::raw_sql(AssertSqlSafe(statement.clone()))
            .execute(&mut connection)
            .await
            .with_context(|| statement.clone())?;
    }
    connection.close().await.context("close the connection")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_keeps_its_server_when_database_or_user_change() {
        let url = "postgres://postgres:secret@127.0.0.1:5432/postgres?sslmode=disable";
        assert_eq!(
            with_database(url, "shop"),
            "postgres://postgres:secret@127.0.0.1:5432/shop?sslmode=disable"
        );
        assert_eq!(with_user(url, "writer"), "postgres://writer@127.0.0.1:5432/postgres?sslmode=disable");
        assert_eq!(with_database("postgres://127.0.0.1:5432", "shop"), "postgres://127.0.0.1:5432/shop");
    }
}
