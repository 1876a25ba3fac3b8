//! `held list|show|retry|discard`.

use anyhow::anyhow;
use outboxd_engine::{
    AuditedAction, HeldFilter, HeldId, HeldMessage, HoldFailure, Operate, OperateError, OutboxError,
};
use outboxd_postgres::PostgresOperator;
use outboxd_sqlite::SqliteOperator;
use serde::Serialize;

use crate::adapters::Adapter;
use crate::cli::{Format, Held};
use crate::failure::Failure;
use crate::output;

/// Lists, shows, retries or discards held messages.
pub(crate) async fn held(adapter: Adapter, command: Held) -> Result<(), Failure> {
    match adapter {
        Adapter::Postgres(config) => decide(PostgresOperator::new(*config), command).await,
        Adapter::Sqlite(config) => decide(SqliteOperator::new(config), command).await,
    }
}

async fn decide(operator: impl Operate, command: Held) -> Result<(), Failure> {
    match command {
        Held::List(list) => {
            let filter = HeldFilter {
                id: None,
                topic: list.topic,
                state: list.state,
                reason: list.reason,
                limit: list.limit,
            };
            let held = operator.held_list(&filter).await?;
            Ok(output::answer(list.output.output, &held, |held| as_table(held, list.limit))?)
        }
        Held::Show { id, output } => {
            let filter = HeldFilter { id: Some(id.id), ..HeldFilter::default() };
            let mut held = operator.held_list(&filter).await?;
            held.retain(|message| id.seq.is_none_or(|seq| message.seq == seq));
            match held.as_slice() {
                [] => Err(OperateError::NotHeld(id.id).into()),
                [message] => Ok(output::answer(output.output, message, as_facts)?),
                several => {
                    let seqs = several.iter().map(|message| message.seq).collect();
                    Err(OperateError::SeveralHeld { id: id.id, seqs }.into())
                }
            }
        }
        Held::Retry(retry) => {
            let action = AuditedAction { who: retry.who.unwrap_or_else(os_user), why: retry.reason };
            let outcome = each(&retry.ids, async |id| operator.held_retry(id, &action).await).await;
            acted("retry", outcome, action, retry.output.output)
        }
        Held::Discard(discard) => {
            let action = AuditedAction { who: discard.who.unwrap_or_else(os_user), why: discard.reason };
            let outcome = each(&discard.ids, async |id| operator.held_discard(id, &action).await).await;
            acted("discard", outcome, action, discard.output.output)
        }
    }
}

/// What became of each message.
#[derive(Default)]
struct Outcome {
    done: Vec<HeldId>,
    /// Not to be done with this message; the others are.
    refused: Vec<(HeldId, OperateError)>,
    /// The database failed, so nothing more was tried from here on.
    failed: Option<(HeldId, OutboxError)>,
    not_tried: Vec<HeldId>,
}

/// Acts on each, so that one message that is gone keeps nobody from the others.
async fn each(ids: &[HeldId], act: impl AsyncFn(HeldId) -> Result<(), OperateError>) -> Outcome {
    let mut outcome = Outcome::default();
    for id in ids {
        if outcome.failed.is_some() {
            outcome.not_tried.push(*id);
            continue;
        }
        match act(*id).await {
            Ok(()) => outcome.done.push(*id),
            Err(OperateError::Outbox(error)) => outcome.failed = Some((*id, error)),
            Err(refused) => outcome.refused.push((*id, refused)),
        }
    }
    outcome
}

/// What was done, as it is in the audit, and what was not.
#[derive(Debug, Serialize)]
struct Acted {
    action: &'static str,
    ids: Vec<HeldId>,
    not_done: Vec<NotDone>,
    who: String,
    why: String,
}

#[derive(Debug, Serialize)]
struct NotDone {
    id: HeldId,
    error: String,
}

fn acted(
    action: &'static str,
    outcome: Outcome,
    audited: AuditedAction,
    format: Format,
) -> Result<(), Failure> {
    let Outcome { done, refused, failed, not_tried } = outcome;
    let refused = refused.into_iter().map(|(id, error)| NotDone { id, error: error.to_string() });
    let mut not_done: Vec<NotDone> = refused.collect();
    let causes: Vec<String> = not_done.iter().map(|not_done| not_done.error.clone()).collect();
    if let Some((id, error)) = &failed {
        not_done.push(NotDone { id: *id, error: outboxd_engine::chain(error) });
    }
    not_done.extend(not_tried.into_iter().map(|id| NotDone { id, error: "not tried".to_owned() }));
    let acted = Acted { action, ids: done, not_done, who: audited.who, why: audited.why };
    if format == Format::Json || !acted.ids.is_empty() {
        output::answer(format, &acted, |acted| {
            let line = |id: &HeldId| match acted.action {
                "retry" => {
                    format!("{id} is due now: the relay publishes it, and then what waits behind it\n")
                }
                _discard => format!("{id} is discarded; the audit keeps that {} did it and why\n", acted.who),
            };
            acted.ids.iter().map(line).collect()
        })?;
    }
    match failed {
        Some((id, error)) => {
            let count = acted.not_done.len();
            let context = format!("{count} of {} not done, from {id} on", acted.ids.len() + count);
            Err(Failure::from(error).context(context))
        }
        None if causes.is_empty() => Ok(()),
        None => Err(Failure::usage(anyhow!("{}", causes.join("; ")))),
    }
}

fn as_table(held: &[HeldMessage], limit: u32) -> String {
    if held.is_empty() {
        return "no message is held".to_owned();
    }
    let row = |message: &HeldMessage| {
        [
            message.id.to_string(),
            message.topic.clone(),
            message.state.as_str().to_owned(),
            message.reason.as_str().to_owned(),
            message.attempts.to_string(),
            message.followers.to_string(),
            output::time(message.held_at),
            output::time_or_dash(message.due_at),
        ]
    };
    let head = ["ID", "TOPIC", "STATE", "REASON", "ATTEMPTS", "BEHIND IT", "HELD SINCE", "DUE"];
    let mut text = output::table(head, held.iter().map(row));
    if limit > 0 && held.len() >= usize::try_from(limit).unwrap_or(usize::MAX) {
        text.push_str(&format!("\n\nThe oldest {limit} are shown; --limit 0 shows all."));
    }
    text
}

fn as_facts(message: &HeldMessage) -> String {
    let dash = || "-".to_owned();
    let mut text = output::facts(&[
        ("id", message.id.to_string()),
        ("seq", message.seq.to_string()),
        ("correlation id", message.correlation_id.clone()),
        ("topic", message.topic.clone()),
        ("key hash", message.key_hash.clone().unwrap_or_else(dash)),
        (
            "payload",
            message.payload_bytes.map_or_else(|| "tombstone".to_owned(), |bytes| format!("{bytes} bytes")),
        ),
        ("state", message.state.as_str().to_owned()),
        ("reason", message.reason.as_str().to_owned()),
        ("dead letter", message.dead_letter.clone().unwrap_or_else(dash)),
        ("last error", message.error.clone().unwrap_or_else(dash)),
        ("attempts", message.attempts.to_string()),
        ("behind it", message.followers.to_string()),
        ("inserted", output::time(message.created_at)),
        ("held since", output::time(message.held_at)),
        ("due", output::time_or_dash(message.due_at)),
    ]);
    if !message.failures.is_empty() {
        let row = |failure: &HoldFailure| [output::time(failure.at), failure.error.clone()];
        text.push('\n');
        text.push_str(&output::table(["FAILED AT", "ERROR"], message.failures.iter().map(row)));
        text.push('\n');
    }
    text
}

/// The user of the operating system; in an image without users, the number.
pub(crate) fn os_user() -> String {
    let uid = nix::unistd::Uid::effective();
    nix::unistd::User::from_uid(uid).ok().flatten().map_or_else(|| format!("uid {uid}"), |user| user.name)
}
