//! Acting on many messages: in steps of one transaction each, so that a million of them is neither a huge transaction nor much memory.

use anyhow::anyhow;
use indicatif::{ProgressBar, ProgressStyle};
use outboxd_core::HoldState;
use outboxd_engine::{
    AuditedAction, BulkAction, HeldFilter, HeldId, HeldMatch, HeldMessage, HeldSpan, Operate, OperateError,
};
use serde::Serialize;

use super::as_table;
use crate::cli::Format;
use crate::failure::Failure;
use crate::output;

/// Messages of one transaction.
const STEP: u32 = 1_000;

/// Messages that a dry run shows.
const SAMPLE: u32 = 10;

/// What was done, or would be.
#[derive(Debug, Serialize)]
struct Done {
    action: &'static str,
    dry_run: bool,
    /// Messages that were meant when the command began.
    matched: u64,
    done: u64,
    /// Messages that were left: they follow the one that they wait behind, or were due already.
    left: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    who: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    sample: Vec<HeldMessage>,
}

/// Acts on whatever the filter means.
pub(super) async fn bulk(
    operator: &impl Operate,
    kind: BulkAction,
    filter: &HeldFilter,
    dry_run: bool,
    action: AuditedAction,
    format: Format,
) -> Result<(), Failure> {
    let HeldMatch { messages: matched, behind, last } = operator.held_match(filter).await?;
    if dry_run {
        let limit = if filter.limit == 0 { SAMPLE } else { filter.limit.min(SAMPLE) };
        let sample = operator.held_list(&HeldFilter { limit, ..filter.clone() }).await?;
        return rehearsed(kind, matched, behind, sample, format);
    }
    let progress = progress(matched);
    let (mut done, mut found) = (0, 0);
    let mut span = last.map(HeldSpan::up_to);
    while let Some(now) = span {
        let step = operator.held_act(kind, filter, now, STEP, &action).await.map_err(|error| {
            Failure::from(error).context(format!(
                "{done} of {matched} done; what was done is in the audit, and the same command goes on with the rest"
            ))
        })?;
        done += step.done;
        found += step.found;
        progress.inc(step.found);
        span = step.reached.filter(|_| step.found >= u64::from(STEP)).map(|reached| now.after(kind, reached));
    }
    progress.finish_and_clear();
    let answer = Done {
        action: kind.as_str(),
        dry_run: false,
        matched,
        done,
        left: found.saturating_sub(done),
        who: Some(action.who),
        why: Some(action.why),
        sample: Vec::new(),
    };
    Ok(output::answer(format, &answer, |answer| {
        let Done { done, left, .. } = answer;
        match kind {
            BulkAction::Retry if *left > 0 => format!(
                "{done} messages are due now: the relay publishes them; {left} were left: they follow the one that they wait behind, or \
                 are due already"
            ),
            BulkAction::Retry => format!("{done} messages are due now: the relay publishes them"),
            BulkAction::Discard => {
                format!("{done} messages are discarded; the audit keeps each, who did it and why")
            }
        }
    })?)
}

/// What acting on these ids would mean.
pub(super) async fn named(
    operator: &impl Operate,
    kind: BulkAction,
    ids: &[HeldId],
    format: Format,
) -> Result<(), Failure> {
    let (mut sample, mut unknown) = (Vec::new(), Vec::new());
    for named in ids {
        let filter = HeldFilter { id: Some(named.id), ..HeldFilter::default() };
        let mut held = operator.held_list(&filter).await?;
        held.retain(|message| named.seq.is_none_or(|seq| message.seq == seq));
        if held.is_empty() {
            unknown.push(OperateError::NotHeld(named.id).to_string());
        }
        sample.append(&mut held);
    }
    let behind = sample.iter().filter(|message| message.state == HoldState::Behind).count() as u64;
    rehearsed(kind, sample.len() as u64, behind, sample, format)?;
    if unknown.is_empty() { Ok(()) } else { Err(Failure::usage(anyhow!("{}", unknown.join("; ")))) }
}

fn rehearsed(
    kind: BulkAction,
    matched: u64,
    behind: u64,
    sample: Vec<HeldMessage>,
    format: Format,
) -> Result<(), Failure> {
    let answer = Done {
        action: kind.as_str(),
        dry_run: true,
        matched,
        done: 0,
        left: if kind == BulkAction::Retry { behind } else { 0 },
        who: None,
        why: None,
        sample,
    };
    Ok(output::answer(format, &answer, |answer| {
        let shown = answer.sample.len() as u64;
        let follow = match answer.left {
            0 => String::new(),
            left => format!(" {left} more wait behind another one and would follow it by themselves."),
        };
        let acted_on = matched - answer.left;
        let mut text =
            format!("This would {} {acted_on} messages; nothing is changed.{follow}\n\n", answer.action);
        text.push_str(&as_table(&answer.sample, 0));
        if shown < matched {
            text.push_str(&format!("\n\nThe oldest {shown} of {matched} are shown."));
        }
        text
    })?)
}

/// On standard error, and only if that is a terminal.
fn progress(messages: u64) -> ProgressBar {
    let bar = ProgressBar::new(messages);
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {human_pos} of {human_len}, {eta} left") {
        bar.set_style(style);
    }
    bar
}
