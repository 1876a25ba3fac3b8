//! Where requests of the admin listener meet the database: in turns, on a session of their own that is opened when somebody asks and
//! closed when nobody has for a while. The relay's sessions are never waited for, and never kept waiting.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use outboxd_kafka::KafkaConfig;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use super::refuse;
use crate::adapters::Adapter;
use crate::commands::Tracer;

/// Requests that are let through to the session: one that uses it, and one that is next.
const TURNS: usize = 2;

/// Longest that a request waits to be let through.
const WAIT_AT_MOST: Duration = Duration::from_secs(2);

/// A session that nobody has used for so long is closed.
const REST_AFTER: Duration = Duration::from_secs(10);

/// What requests are answered from.
#[derive(Debug)]
pub(crate) struct Desk {
    adapter: Adapter,
    kafka: KafkaConfig,
    turns: Semaphore,
    /// With the time when it was asked last. Dropping it closes its connection.
    tracer: Mutex<Option<(Arc<Tracer>, Instant)>>,
}

impl Desk {
    pub(crate) fn new(adapter: Adapter, kafka: KafkaConfig) -> Self {
        Self { adapter, kafka, turns: Semaphore::new(TURNS), tracer: Mutex::new(None) }
    }

    /// Does the work when its turn comes, or answers that it did not come. A record is read with Kafka's configuration.
    pub(super) async fn ask<T>(
        &self,
        work: impl AsyncFnOnce(&Tracer, &KafkaConfig) -> T,
    ) -> Result<T, Response> {
        let Ok(Ok(_turn)) = timeout(WAIT_AT_MOST, self.turns.acquire()).await else {
            return Err(busy("others are being answered"));
        };
        let tracer = self.tracer();
        let done = work(&tracer, &self.kafka).await;
        // What was used until now is idle from now on.
        self.tracer();
        Ok(done)
    }

    /// Connects when first asked something.
    fn tracer(&self) -> Arc<Tracer> {
        let mut slot = self.tracer.lock().unwrap_or_else(PoisonError::into_inner);
        let tracer =
            slot.take().map_or_else(|| Arc::new(Tracer::new(self.adapter.clone())), |(tracer, _)| tracer);
        *slot = Some((Arc::clone(&tracer), Instant::now()));
        tracer
    }

    /// Closes the session if nobody needs it.
    pub(super) fn rest(&self) {
        let mut slot = self.tracer.lock().unwrap_or_else(PoisonError::into_inner);
        let rests = |tracer: &Arc<Tracer>| Arc::strong_count(tracer) == 1;
        if slot.as_ref().is_some_and(|(tracer, asked)| rests(tracer) && asked.elapsed() >= REST_AFTER) {
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
