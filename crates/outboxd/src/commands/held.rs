//! `held list|show|retry|discard|edit|audit`.

mod bulk;

mod edit;

use anyhow::anyhow;
use outboxd_core::{Explanation, KeyHash, Routes};
use outboxd_engine::{
    AuditFilter, AuditLine, AuditedAction, BulkAction, HeldFilter, HeldId, HeldMessage, HoldFailure, Operate,
    OperateError, OutboxError,
};
use outboxd_postgres::PostgresOperator;
use outboxd_sqlite::SqliteOperator;
use serde::Serialize;

use crate::adapters::Adapter;
use crate::cli::{Format, Held, HeldBulk, Meant};
use crate::failure::Failure;
use crate::output;

/// Lists, shows, retries or discards held messages.
pub(crate) async fn held(adapter: Adapter, routes: &Routes, command: Held) -> Result<(), Failure> {
    match adapter {
        Adapter::Postgres(config) => decide(PostgresOperator::new(*config), routes, command).await,
        Adapter::Sqlite(config) => decide(SqliteOperator::new(config), routes, command).await,
    }
}

async fn decide(operator: impl Operate, routes: &Routes, command: Held) -> Result<(), Failure> {
    match command {
        Held::List(list) => {
            let mut filter = filter(&list.meant)?;
            filter.reason = filter.reason.or(list.reason);
            filter.limit = list.limit;
            let held = operator.held_list(&filter).await?;
            Ok(output::answer(list.output.output, &held, |held| as_table(held, list.limit))?)
        }
        Held::Show { id, output } => {
            let filter = HeldFilter { id: Some(id.id), ..HeldFilter::default() };
            let mut held = operator.held_list(&filter).await?;
            held.retain(|message| id.seq.is_none_or(|seq| message.seq == seq));
            match held.as_slice() {
                [] => Err(OperateError::NotHeld(id.id).into()),
                [message] => {
                    let shown = Shown { message, explanation: message.reason.explained() };
                    Ok(output::answer(output.output, &shown, as_facts)?)
                }
                several => {
                    let seqs = several.iter().map(|message| message.seq).collect();
                    Err(OperateError::SeveralHeld { id: id.id, seqs }.into())
                }
            }
        }
        Held::Retry(asked) => many(&operator, BulkAction::Retry, asked).await,
        Held::Discard(asked) => many(&operator, BulkAction::Discard, asked).await,
        Held::Edit(asked) => edit::edit(&operator, routes, asked).await,
        Held::Audit(asked) => {
            let filter = AuditFilter {
                id: asked.id,
                topic: asked.topic,
                kind: asked.action,
                who: asked.who,
                older_than: asked.older_than,
                younger_than: asked.younger_than,
                limit: asked.limit,
            };
            let lines = operator.held_audit(&filter).await?;
            Ok(output::answer(asked.output.output, &lines, |lines| audit_table(lines))?)
        }
    }
}

/// What the filters mean.
fn filter(meant: &Meant) -> Result<HeldFilter, Failure> {
    let key_hash = match (&meant.key, &meant.topic) {
        (Some(key), Some(topic)) => {
            let topic = topic.only().ok_or_else(|| {
                Failure::usage(anyhow!(
                    "--key needs one topic: a key has its place in the order of each topic"
                ))
            })?;
            Some(KeyHash::of_parts(topic, key))
        }
        _ => meant.key_hash,
    };
    Ok(HeldFilter {
        id: None,
        topic: meant.topic.clone(),
        key_hash,
        state: meant.state,
        reason: meant.held_for,
        older_than: meant.older_than,
        younger_than: meant.younger_than,
        limit: 0,
    })
}

fn is_empty(meant: &Meant) -> bool {
    let Meant { topic, key, key_hash, state, held_for, older_than, younger_than } = meant;
    topic.is_none()
        && key.is_none()
        && key_hash.is_none()
        && state.is_none()
        && held_for.is_none()
        && older_than.is_none()
        && younger_than.is_none()
}

/// Retries or discards: by id, or by filters.
async fn many(operator: &impl Operate, kind: BulkAction, asked: HeldBulk) -> Result<(), Failure> {
    let by_filter = !is_empty(&asked.meant) || asked.all;
    match (asked.ids.is_empty(), by_filter) {
        (false, true) => return Err(Failure::usage(anyhow!("name ids or filters, not both"))),
        (true, false) => {
            return Err(Failure::usage(anyhow!(
                "name ids, or filters as --topic or --held-for, or --all for every held message"
            )));
        }
        _ => {}
    }
    if asked.all && !is_empty(&asked.meant) {
        return Err(Failure::usage(anyhow!("--all means every held message: leave it out, or the filters")));
    }
    let action = AuditedAction {
        who: asked.who.clone().unwrap_or_else(os_user),
        why: asked.reason.clone().unwrap_or_default(),
    };
    let format = asked.output.output;
    if by_filter {
        let filter = HeldFilter { limit: asked.limit, ..filter(&asked.meant)? };
        return bulk::bulk(operator, kind, &filter, asked.dry_run, action, format).await;
    }
    if asked.dry_run {
        return bulk::named(operator, kind, &asked.ids, format).await;
    }
    let outcome = match kind {
        BulkAction::Retry => each(&asked.ids, async |id| operator.held_retry(id, &action).await).await,
        BulkAction::Discard => each(&asked.ids, async |id| operator.held_discard(id, &action).await).await,
    };
    acted(kind.as_str(), outcome, action, format)
}

/// A message and what its reason means.
#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    message: &'a HeldMessage,
    explanation: Explanation,
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

/// What an edit is called in an answer.
const EDITED: &str = "edit";
/// And one that makes the message due.
const EDITED_AND_RETRIED: &str = "edit and retry";

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
                EDITED => format!("{id} is edited; it stays where it is until you retry it\n"),
                EDITED_AND_RETRIED => {
                    format!(
                        "{id} is edited and due now: the relay publishes it, and then what waits behind it\n"
                    )
                }
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
        return "no such message is held".to_owned();
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

fn as_facts(shown: &Shown<'_>) -> String {
    let Shown { message, explanation } = shown;
    let dash = || "-".to_owned();
    let edit = message.edit.as_ref();
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
        ("waits behind", message.behind.map_or_else(dash, |head| head.to_string())),
        (
            "edited",
            edit.map_or_else(dash, |e| format!("{} at {}", e.edited.join(", "), output::time(e.edited_at))),
        ),
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
    let Explanation { what, why, remedy } = explanation;
    text.push_str(&format!("\nWhat happened: {what}\nWhy the relay stopped: {why}\nWhat to do: {remedy}\n"));
    text
}

fn audit_table(lines: &[AuditLine]) -> String {
    if lines.is_empty() {
        return "nobody has acted on such a message".to_owned();
    }
    let row = |line: &AuditLine| {
        [
            output::time(line.at),
            line.kind.clone(),
            line.id.to_string(),
            line.topic.clone(),
            line.reason_held.clone(),
            line.who.clone(),
            line.why.clone(),
            line.details.as_ref().map_or_else(|| "-".to_owned(), changed),
        ]
    };
    output::table(["AT", "ACTION", "ID", "TOPIC", "HELD FOR", "WHO", "WHY", "CHANGED"], lines.iter().map(row))
}

/// What an edit changed, in few words; --output json has before and after.
fn changed(details: &serde_json::Value) -> String {
    let words = details["changed"]
        .as_array()
        .map(|words| words.iter().filter_map(serde_json::Value::as_str).collect::<Vec<_>>().join(", "));
    words.unwrap_or_else(|| details.to_string())
}

/// The user of the operating system; in an image without users, the number.
pub(crate) fn os_user() -> String {
    let uid = nix::unistd::Uid::effective();
    nix::unistd::User::from_uid(uid).ok().flatten().map_or_else(|| format!("uid {uid}"), |user| user.name)
}
