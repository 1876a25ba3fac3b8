//! `GET /trace/{id}`: what `outboxd trace --output json` prints. The parameters are the command's.

use std::sync::Arc;

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use outboxd_engine::OutboxError;
use outboxd_engine::trace::{By, TraceQuery, Traced, trace_id};
use serde::Deserialize;

use super::desk::Desk;
use super::refuse;
use crate::cli::Asked;
use crate::commands::query_of;
use crate::failure::Failure;

const LIMIT: u32 = 100;
const LIMIT_MAX: u32 = 1_000;

/// What the id is, where it is not to be recognised.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    MessageId,
    CorrelationId,
    TraceId,
    IdempotencyKey,
    Key,
    Xid,
}

/// The parameters. There is none for payloads: they are not shown over HTTP.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Parameters {
    by: Option<Kind>,
    topic: Option<String>,
    limit: Option<u32>,
}

/// Why there is no answer.
enum Trouble {
    Record(Failure),
    Outbox(OutboxError),
}

pub(super) async fn trace(
    State(desk): State<Arc<Desk>>,
    id: Result<Path<String>, PathRejection>,
    parameters: Result<Query<Parameters>, QueryRejection>,
) -> Response {
    let id = match id {
        Ok(Path(id)) => id,
        Err(error) => return wrong(&error.body_text()),
    };
    let parameters = match parameters {
        Ok(Query(parameters)) => parameters,
        Err(error) => return wrong(&error.body_text()),
    };
    let limit = parameters.limit.unwrap_or(LIMIT);
    let asked = match asked(&id, &parameters, limit) {
        Ok(asked) => asked,
        Err(said) => return wrong(&said),
    };
    let answered = desk
        .ask(async |tracer, kafka| {
            let query = query_of(asked, kafka, limit).await.map_err(Trouble::Record)?;
            tracer.answer(&query, &|_| ()).await.map_err(Trouble::Outbox)
        })
        .await;
    match answered {
        Ok(Ok(traced)) => answer(&traced),
        Ok(Err(trouble)) => failed(&trouble),
        Err(busy) => busy,
    }
}

fn asked(id: &str, parameters: &Parameters, limit: u32) -> Result<Asked, String> {
    if !(1..=LIMIT_MAX).contains(&limit) {
        return Err(format!("limit is not from 1 to {LIMIT_MAX}"));
    }
    if parameters.topic.is_some() && !matches!(parameters.by, Some(Kind::Key)) {
        return Err("topic goes with by=key".to_owned());
    }
    let id = id.trim();
    if id.is_empty() {
        return Err("the id is blank".to_owned());
    }
    // No text of the database holds one.
    if [Some(id), parameters.topic.as_deref()].into_iter().flatten().any(|text| text.contains('\0')) {
        return Err("a NUL character is in no id and in no topic".to_owned());
    }
    let Some(kind) = parameters.by else { return Ok(Asked::of(id, limit)) };
    let by = match kind {
        Kind::MessageId => By::Ids(vec![id.parse().map_err(|_no_uuid| "the message id is no UUID")?]),
        Kind::CorrelationId => By::Correlation(id.to_owned()),
        Kind::TraceId => {
            By::TraceId(trace_id(id).ok_or("the trace id is not 32 hexadecimal digits")?.to_ascii_lowercase())
        }
        Kind::IdempotencyKey => By::Idempotency(id.to_owned()),
        Kind::Key => By::Key { key: id.to_owned(), topic: parameters.topic.clone() },
        Kind::Xid => By::Xid(id.parse().map_err(|_no_number| "the xid is no number")?),
    };
    Ok(Asked::Query(TraceQuery { asked: format!("{} {id}", by.what()), by: vec![by], limit, place: None }))
}

fn answer(traced: &Traced) -> Response {
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

fn wrong(said: &str) -> Response {
    refuse(
        StatusCode::BAD_REQUEST,
        said,
        "ask for GET /trace/{id}; the parameters are by (message_id, correlation_id, trace_id, idempotency_key, key, xid), topic and limit",
    )
}

/// What is out of reach comes back by itself, what is refused is for an operator. Either way it is this answer that fails, not the relay.
fn failed(trouble: &Trouble) -> Response {
    const UNAVAILABLE: StatusCode = StatusCode::SERVICE_UNAVAILABLE;
    match trouble {
        Trouble::Record(failure) if failure.is_usage() => refuse(
            StatusCode::NOT_FOUND,
            &failure.to_string(),
            "ask for the id of a message, or for another record",
        ),
        Trouble::Record(failure) => {
            refuse(UNAVAILABLE, &failure.to_string(), "ask again when Kafka answers (`outboxd check`)")
        }
        Trouble::Outbox(OutboxError::Refused { finding, remedy }) => refuse(UNAVAILABLE, finding, remedy),
        Trouble::Outbox(error @ (OutboxError::Unavailable { .. } | OutboxError::Fenced)) => refuse(
            UNAVAILABLE,
            &outboxd_engine::chain(error),
            "ask again when the database answers (`outboxd check`)",
        ),
    }
}
