//! What is special about SQLite. What every outbox promises is in the conformance suite (`tests/conformance.rs`).

use std::path::Path;
use std::time::Duration;

use outboxd_core::{Cursor, Message};
use outboxd_engine::{Outbox, PageLimit, ReadPage, Settlement, Start, Term};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, SqliteConnection};
use tempfile::TempDir;

use crate::{Migrator, SqliteConfig, SqliteOutbox};

mod intents;

mod leading;

mod migrating;

mod plans;

mod reading;

mod writing;

const LIMIT: PageLimit = PageLimit { messages: 1_000, bytes: 1 << 30 };

/// A fresh outbox in a directory of its own.
struct Shop {
    directory: TempDir,
}

impl Shop {
    async fn open() -> Self {
        let shop = Self { directory: tempfile::tempdir().unwrap() };
        Migrator::new(shop.config()).apply().await.unwrap();
        shop
    }

    fn config(&self) -> SqliteConfig {
        SqliteConfig::new(self.directory.path().join("shop.db"))
    }

    fn outbox(&self) -> SqliteOutbox {
        SqliteOutbox::new(self.config())
    }

    /// A connection of the application, with the synchronous mode that many choose for WAL.
    async fn application(&self) -> SqliteConnection {
        application(&self.config().path).await
    }

    async fn run(&self, sql: &str) {
        execute(&mut self.application().await, sql).await.unwrap();
    }

    async fn number(&self, sql: &str) -> i64 {
        sqlx::query_scalar(AssertSqlSafe(sql.to_owned()))
            .fetch_one(&mut self.application().await)
            .await
            .unwrap()
    }
}

async fn application(path: &Path) -> SqliteConnection {
    SqliteConnectOptions::new()
        .filename(path)
        .busy_timeout(Duration::from_secs(10))
        .synchronous(sqlx::sqlite::SqliteSynchronous::Normal)
        .connect()
        .await
        .unwrap()
}

async fn execute(connection: &mut SqliteConnection, sql: &str) -> Result<(), sqlx::Error> {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(connection).await.map(drop)
}

async fn lead(outbox: &SqliteOutbox) -> (Term, Start) {
    let term = outbox.lead().await.unwrap().unwrap();
    (term, outbox.start(term).await.unwrap())
}

async fn read(outbox: &SqliteOutbox, from: &Cursor) -> (Vec<Message>, Cursor) {
    let ReadPage { page, mark, .. } = outbox.read(from, LIMIT).await.unwrap();
    if let Some(mark) = mark {
        outbox.durable(mark).await.unwrap();
    }
    let after = page.cursor_after();
    (page.messages, after)
}

fn moving(term: Term, before: &Cursor, after: &Cursor) -> Settlement {
    Settlement {
        term,
        before: before.clone(),
        after: after.clone(),
        receipts: Vec::new(),
        receipts_out_of_order: Vec::new(),
        holds: Vec::new(),
        released: Vec::new(),
        trial: None,
        proves_term: true,
        scheduled: Vec::new(),
    }
}
