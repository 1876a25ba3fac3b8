//! The relay's HTTP: metrics, probes, status. It reads what others keep and changes nothing.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::extract::{Query, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::failure::Failure;
use crate::metrics::Metrics;
use crate::standing::{Probe, Standing, Status};

/// Longest that one request may take.
const REQUEST_AT_MOST: Duration = Duration::from_secs(5);

/// Longest that an open request may keep the process from ending.
const LINGER_AT_MOST: Duration = Duration::from_secs(1);

/// What the answers are made of.
#[derive(Clone, Debug)]
pub(crate) struct Sources {
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) standing: Arc<Standing>,
}

/// Takes the address.
///
/// # Errors
/// [`Failure::config`] if it is taken: the remedy is a configuration key.
pub(crate) async fn listen(address: SocketAddr) -> Result<TcpListener, Failure> {
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| {
            format!(
                "http.listen: cannot listen on {address}; choose another address with OUTBOXD__HTTP__LISTEN (port 0 takes a free one)"
            )
        })
        .map_err(Failure::config)?;
    let address = listener.local_addr().context("ask for the address").map_err(Failure::bug)?;
    tracing::info!(target: "outboxd::http", %address, "serving metrics, probes and status");
    Ok(listener)
}

/// Serves until told to stop, and then a moment longer for requests that are under way.
///
/// # Errors
/// If the listener fails: nobody could see the relay any more.
pub(crate) async fn serve(
    listener: TcpListener,
    sources: Sources,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let stopping = stop.clone();
    let server = axum::serve(listener, router(sources)).with_graceful_shutdown(stopping.cancelled_owned());
    tokio::select! {
        served = async { server.await } => served,
        () = async { stop.cancelled().await; tokio::time::sleep(LINGER_AT_MOST).await } => Ok(()),
    }
}

fn router(sources: Sources) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(livez))
        .route("/healthz", get(livez))
        .route("/readyz", get(readyz))
        .route("/status", get(status))
        .layer(middleware::from_fn(in_time))
        .with_state(sources)
}

async fn in_time(request: Request, next: Next) -> Response {
    match tokio::time::timeout(REQUEST_AT_MOST, next.run(request)).await {
        Ok(response) => response,
        Err(_elapsed) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}

async fn metrics(State(sources): State<Sources>) -> Response {
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (kind, sources.metrics.render()).into_response()
}

async fn livez(State(sources): State<Sources>) -> Response {
    answer(&sources.standing.alive())
}

#[derive(Debug, Deserialize)]
struct Readiness {
    strict: Option<String>,
}

async fn readyz(State(sources): State<Sources>, Query(asked): Query<Readiness>) -> Response {
    let strictly = asked.strict.is_some_and(|strict| matches!(strict.as_str(), "" | "1" | "true"));
    answer(&if strictly { sources.standing.ready_strictly() } else { sources.standing.ready() })
}

async fn status(State(sources): State<Sources>) -> Json<Status> {
    Json(sources.standing.status())
}

fn answer(probe: &Probe) -> Response {
    let code = if probe.holds { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, format!("{}\n", probe.said)).into_response()
}
