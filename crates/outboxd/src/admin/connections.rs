//! Connections of the admin listener: few, short, one request each. A client that sends nothing, or reads nothing, is cut off.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::desk::Desk;

/// Open at once; more wait in the kernel until one of these ends.
const CONNECTIONS_MAX: usize = 64;

/// Longest that a request's head may take to arrive.
const HEAD_AT_MOST: Duration = Duration::from_secs(5);

/// Longest that a connection may be open: a request's time, and time to read the answer.
const CONNECTION_AT_MOST: Duration = Duration::from_secs(30);

/// Most bytes of a request's head. Its body is not read.
const HEAD_BYTES_MAX: usize = 16 * 1_024;

/// Most header lines of a request.
const HEADERS_MAX: usize = 64;

/// Longest that an open request may keep the process from ending.
const LINGER_AT_MOST: Duration = Duration::from_secs(1);

/// After an error of the listener, such as too many open files.
const PAUSE: Duration = Duration::from_secs(1);

/// Between two looks whether the database session is still needed.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The address, of this machine, that a client connected to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reached(pub(super) SocketAddr);

/// Serves until told to stop.
pub(super) async fn serve(listener: TcpListener, router: &Router, desk: &Desk, stop: CancellationToken) {
    let mut open = JoinSet::new();
    let mut look = tokio::time::interval(LOOK_EVERY);
    // Every branch is cancel safe: joining a set, accepting, a tick and a token lose nothing when dropped.
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some(ended) = open.join_next() => say_if_panicked(&ended),
            _ = look.tick() => desk.rest(),
            accepted = listener.accept(), if open.len() < CONNECTIONS_MAX => match accepted {
                Ok((stream, _peer)) => {
                    open.spawn(attend(stream, router.clone()));
                }
                Err(error) => {
                    tracing::debug!(target: "outboxd::admin", %error, "accept a connection");
                    tokio::time::sleep(PAUSE).await;
                }
            },
        }
    }
    drop(listener);
    let end = async { while open.join_next().await.is_some() {} };
    // Whatever is left is dropped with the set.
    let _ended = tokio::time::timeout(LINGER_AT_MOST, end).await;
}

fn say_if_panicked(ended: &Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(target: "outboxd::admin", %error, "a request ended in a bug");
    }
}

/// One request and its answer.
async fn attend(stream: TcpStream, router: Router) {
    let served = async {
        let reached = Reached(stream.local_addr()?);
        let service = TowerToHyperService::new(router.layer(Extension(reached)));
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_AT_MOST)
            .max_buf_size(HEAD_BYTES_MAX)
            .max_headers(HEADERS_MAX)
            .keep_alive(false)
            .serve_connection(TokioIo::new(stream), service)
            .await
            .map_err(io::Error::other)
    };
    match tokio::time::timeout(CONNECTION_AT_MOST, served).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(target: "outboxd::admin", %error, "a connection broke"),
        Err(_elapsed) => tracing::debug!(target: "outboxd::admin", "a connection was open for too long"),
    }
}
