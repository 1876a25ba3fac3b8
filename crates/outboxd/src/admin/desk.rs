//! Where requests of the admin listener meet the database: in turns, on a session of their own that is opened when somebody asks and
//! closed when nobody has for a while. The relay's sessions are never waited for, and never kept waiting.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use outboxd_postgres::PostgresOperator;
use outboxd_sqlite::SqliteOperator;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use super::refuse;
use crate::adapters::Adapter;

/// Requests that are let through to the session: one that uses it, and one that is next.
const TURNS: usize = 2;

/// Longest that a request waits to be let through.
const WAIT_AT_MOST: Duration = Duration::from_secs(2);

/// A session that nobody has used for so long is closed.
const REST_AFTER: Duration = Duration::from_secs(10);

/// Whoever answers, over whichever database it is. Connects when first asked something.
#[derive(Debug)]
pub(super) enum Operator {
    Postgres(Box<PostgresOperator>),
    Sqlite(SqliteOperator),
}

#[derive(Debug)]
pub(super) struct Desk {
    adapter: Adapter,
    turns: Semaphore,
    /// With the time when it was asked last. Dropping it closes its connection.
    operator: Mutex<Option<(Arc<Operator>, Instant)>>,
}

impl Desk {
    pub(super) fn new(adapter: Adapter) -> Self {
        Self { adapter, turns: Semaphore::new(TURNS), operator: Mutex::new(None) }
    }

    /// Does the work when its turn comes, or answers that it did not come.
    pub(super) async fn ask<T>(&self, work: impl AsyncFnOnce(&Operator) -> T) -> Result<T, Response> {
        let Ok(Ok(_turn)) = timeout(WAIT_AT_MOST, self.turns.acquire()).await else {
            return Err(busy("others are being answered"));
        };
        let operator = self.operator();
        let done = work(&operator).await;
        // What was used until now is idle from now on.
        self.operator();
        Ok(done)
    }

    fn operator(&self) -> Arc<Operator> {
        let mut slot = self.operator.lock().unwrap_or_else(PoisonError::into_inner);
        let operator = match slot.take() {
            Some((operator, _)) => operator,
            None => Arc::new(match &self.adapter {
                Adapter::Postgres(config) => {
                    Operator::Postgres(Box::new(PostgresOperator::new((**config).clone())))
                }
                Adapter::Sqlite(config) => Operator::Sqlite(SqliteOperator::new(config.clone())),
            }),
        };
        *slot = Some((Arc::clone(&operator), Instant::now()));
        operator
    }

    /// Closes the session if nobody needs it.
    pub(super) fn rest(&self) {
        let mut slot = self.operator.lock().unwrap_or_else(PoisonError::into_inner);
        if slot.as_ref().is_some_and(|(_, asked)| asked.elapsed() >= REST_AFTER) {
            *slot = None;
        }
    }
}

/// Somebody else is served, or nobody in time.
pub(super) fn busy(error: &str) -> Response {
    let mut response = refuse(StatusCode::SERVICE_UNAVAILABLE, error, "ask again in a moment");
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("2"));
    response
}
