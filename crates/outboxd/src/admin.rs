//! The admin listener: what an operator asks a running relay over HTTP, leading or standing by.
//!
//! It is not for everybody, so it is apart from metrics and probes: on a loopback address by default, elsewhere only with a token. A
//! browser on the same machine reaches a loopback address too, on behalf of any page it shows; who may ask is therefore looked at in every
//! request ([`guard`]). Clients that are slow or many hold nothing but themselves ([`connections`]), and the database sees at most one
//! session, which is not the relay's ([`desk`]). It reads, and never shows a payload.

mod connections;

mod desk;

mod guard;

mod trace;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub(crate) use self::desk::Desk;
use self::guard::Guard;
use crate::config::AdminSection;
use crate::failure::Failure;

/// Longest that one request may take, waiting for its turn included.
const REQUEST_AT_MOST: Duration = Duration::from_secs(15);

/// Takes the address. `None` if nobody chose it and another relay of this machine has it: that is no reason not to relay.
///
/// # Errors
/// [`Failure::config`] if somebody chose it and it cannot be had.
pub(crate) async fn listen(section: &AdminSection) -> Result<Option<TcpListener>, Failure> {
    let address = section.listen;
    let listener = match TcpListener::bind(address).await {
        Ok(listener) => listener,
        Err(error) if !section.chosen => {
            tracing::warn!(target: "outboxd::admin", %address, %error,
                "the admin listener is off: its default address cannot be had; \
                 remedy: give this relay another one with OUTBOXD__ADMIN__LISTEN (port 0 takes a free one), or turn it off there (off)");
            return Ok(None);
        }
        Err(error) => {
            let said = format!(
                "admin.listen: cannot listen on {address}; choose another address with OUTBOXD__ADMIN__LISTEN \
                 (port 0 takes a free one, off none)"
            );
            return Err(Failure::config(anyhow::Error::new(error).context(said)));
        }
    };
    let address: SocketAddr = listener.local_addr().context("ask for the address").map_err(Failure::bug)?;
    tracing::info!(target: "outboxd::admin", %address, token = section.token.is_some(), "serving trace");
    Ok(Some(listener))
}

/// Serves until told to stop, and then a moment longer for requests that are under way.
///
/// # Errors
/// None so far: what fails is a connection, not the listener.
pub(crate) async fn serve(
    listener: TcpListener,
    section: AdminSection,
    desk: Desk,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let desk = Arc::new(desk);
    connections::serve(listener, &router(Guard::new(&section), Arc::clone(&desk)), &desk, stop).await;
    Ok(())
}

fn router(guard: Guard, desk: Arc<Desk>) -> Router {
    Router::new()
        .route("/trace/{*id}", get(trace::trace))
        .fallback(nowhere)
        .method_not_allowed_fallback(not_get)
        .layer(middleware::from_fn(in_time))
        .layer(middleware::from_fn_with_state(Arc::new(guard), guard::admit))
        .layer(middleware::from_fn(seal))
        .with_state(desk)
}

/// An answer that is none, and what to do about it.
fn refuse(code: StatusCode, error: &str, remedy: &str) -> Response {
    let said = json!({ "error": error, "remedy": remedy });
    (code, [(header::CONTENT_TYPE, "application/json")], format!("{said:#}\n")).into_response()
}

async fn nowhere() -> Response {
    refuse(StatusCode::NOT_FOUND, "there is nothing at this path", "ask for GET /trace/{id}")
}

async fn not_get() -> Response {
    refuse(StatusCode::METHOD_NOT_ALLOWED, "only GET is answered", "ask for GET /trace/{id}")
}

async fn in_time(request: Request, next: Next) -> Response {
    match tokio::time::timeout(REQUEST_AT_MOST, next.run(request)).await {
        Ok(response) => response,
        Err(_elapsed) => desk::busy("the answer takes too long"),
    }
}

/// What every answer carries: nobody keeps it, and a browser makes nothing of it.
async fn seal(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
        (header::REFERRER_POLICY, "no-referrer"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    tracing::debug!(target: "outboxd::admin", code = response.status().as_u16(), "answered");
    response
}
