//! `held edit`.

use anyhow::{Context as _, anyhow};
use outboxd_core::{HoldState, Routes};
use outboxd_engine::{AuditedAction, HeldEdit, HeldFilter, HeldId, HeldMessage, Operate};

use super::{EDITED, EDITED_AND_RETRIED, acted, as_table, each, os_user};
use crate::cli::EditArguments;
use crate::failure::Failure;
use crate::output;

/// Messages that one command edits: each is judged on its own.
const EDITED_MAX: u32 = 10_000;

pub(super) async fn edit(
    operator: &impl Operate,
    routes: &Routes,
    asked: EditArguments,
) -> Result<(), Failure> {
    let ids = ids(operator, &asked).await?;
    if asked.dry_run {
        let mut held: Vec<HeldMessage> = Vec::new();
        for named in ids {
            let filter = HeldFilter { id: Some(named.id), ..HeldFilter::default() };
            let found = operator.held_list(&filter).await?;
            held.extend(found.into_iter().filter(|message| named.seq.is_none_or(|seq| message.seq == seq)));
        }
        return Ok(output::answer(asked.output.output, &held, |held| {
            format!("This would edit {} messages; nothing is changed.\n\n{}", held.len(), as_table(held, 0))
        })?);
    }
    let change = change(&asked, routes)?;
    let action =
        AuditedAction { who: asked.who.unwrap_or_else(os_user), why: asked.reason.unwrap_or_default() };
    let outcome = each(&ids, async |id| operator.held_edit(id, &change, &action).await.map(drop)).await;
    acted(if asked.retry { EDITED_AND_RETRIED } else { EDITED }, outcome, action, asked.output.output)
}

/// The messages that are meant. By filters, only those that can be edited: followers go after their head.
async fn ids(operator: &impl Operate, asked: &EditArguments) -> Result<Vec<HeldId>, Failure> {
    if !asked.ids.is_empty() {
        return Ok(asked.ids.clone());
    }
    if asked.held_for.is_none() && asked.on_topic.is_none() {
        return Err(Failure::usage(anyhow!("name ids, or --held-for or --on-topic")));
    }
    let filter = HeldFilter {
        topic: asked.on_topic.clone(),
        reason: asked.held_for,
        limit: EDITED_MAX + 1,
        ..HeldFilter::default()
    };
    let held = operator.held_list(&filter).await?;
    if held.len() > usize::try_from(EDITED_MAX).unwrap_or(usize::MAX) {
        return Err(Failure::usage(anyhow!(
            "more than {EDITED_MAX} messages are meant: narrow it with --held-for and --on-topic"
        )));
    }
    let can_be = |message: &&HeldMessage| message.state != HoldState::Behind;
    Ok(held.iter().filter(can_be).map(|message| HeldId { id: message.id, seq: Some(message.seq) }).collect())
}

fn change(asked: &EditArguments, routes: &Routes) -> Result<HeldEdit, Failure> {
    let destination = asked.topic.as_deref().map(|topic| routes.destination(topic));
    if let Some(refusal) = destination.as_ref().and_then(|destination| destination.refusal.as_ref()) {
        return Err(Failure::usage(anyhow!("{refusal}")));
    }
    let payload = match &asked.payload_file {
        Some(path) => {
            let read =
                std::fs::read(path).with_context(|| format!("read the payload from {}", path.display()));
            Some(read.map_err(Failure::usage)?)
        }
        None => None,
    };
    Ok(HeldEdit {
        set_headers: asked.headers.clone(),
        remove_headers: asked.remove_header.clone(),
        topic: asked.topic.clone(),
        destination: destination.map(|destination| destination.topic.to_string()),
        partition: if asked.no_partition { Some(None) } else { asked.partition.map(Some) },
        payload,
        retry: asked.retry,
    })
}
