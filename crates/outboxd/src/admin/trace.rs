//! `GET /trace/{id}`: what `outboxd trace --output json` prints.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use outboxd_engine::{Operate as _, OutboxError};
use serde::Serialize;

use super::desk::{Desk, Operator};
use super::refuse;

pub(super) async fn by_id(State(desk): State<Arc<Desk>>, Path(_id): Path<String>) -> Response {
    let asked = desk
        .ask(async |operator| match operator {
            Operator::Postgres(operator) => operator.status().await,
            Operator::Sqlite(operator) => operator.status().await,
        })
        .await;
    match asked {
        Ok(Ok(traced)) => answer(&traced),
        Ok(Err(error)) => failed(&error),
        Err(busy) => busy,
    }
}

fn answer(traced: &impl Serialize) -> Response {
    match serde_json::to_string_pretty(traced) {
        Ok(text) => ([(header::CONTENT_TYPE, "application/json")], text + "\n").into_response(),
        Err(error) => {
            tracing::error!(target: "outboxd::admin", %error, "write the answer as JSON");
            refuse(
                StatusCode::INTERNAL_SERVER_ERROR,
                "a bug: the answer is not JSON",
                "ask with `outboxd trace`",
            )
        }
    }
}

/// Out of reach passes by itself; what is refused is for an operator. Either way it is this answer that fails, not the relay.
fn failed(error: &OutboxError) -> Response {
    let chain = outboxd_engine::chain(error);
    match error {
        OutboxError::Refused { finding, remedy } => {
            refuse(StatusCode::SERVICE_UNAVAILABLE, finding.clone(), remedy.clone())
        }
        OutboxError::Unavailable { .. } | OutboxError::Fenced => refuse(
            StatusCode::SERVICE_UNAVAILABLE,
            chain,
            "ask again when the database answers (`outboxd check`)",
        ),
    }
}
