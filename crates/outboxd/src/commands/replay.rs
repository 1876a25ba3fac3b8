//! `replay start|list|show|pause|resume|cancel`.

use std::time::Duration;

use anyhow::anyhow;
use indicatif::{ProgressBar, ProgressStyle};
use outboxd_core::Seq;
use outboxd_core::record::topic_is_legal;
use outboxd_engine::{
    AuditedAction, OperateReplays, ReplayChange, ReplayError, ReplayFilter, ReplayInfo, ReplayRequest,
    ReplaySample, ReplaySpan, ReplayState,
};
use outboxd_postgres::PostgresOperator;
use outboxd_sqlite::SqliteOperator;
use serde::Serialize;
use tokio::time::Instant;

use super::held::os_user;
use crate::adapters::Adapter;
use crate::cli::{Format, Replay, ReplayDecision, ReplayStart};
use crate::failure::Failure;
use crate::output;

/// Messages that one step of the search looks at.
const STEP: u32 = 20_000;
/// A replay of at most so many names each; one of more is asked for with --yes.
const FEW: u64 = 1_000;
/// More ids than these cannot be named: each message that has one is.
const NAMED_MAX: u64 = 100_000;
/// Messages that a dry run shows.
const SAMPLE: usize = 10;
/// Between two looks at a replay.
const WATCH_EVERY: Duration = Duration::from_secs(1);

/// Starts replays, looks at them, and decides about them.
pub(crate) async fn replay(adapter: Adapter, command: Replay) -> Result<(), Failure> {
    match adapter {
        Adapter::Postgres(config) => obey(PostgresOperator::new(*config), command).await,
        Adapter::Sqlite(config) => obey(SqliteOperator::new(config), command).await,
    }
}

async fn obey(operator: impl OperateReplays, command: Replay) -> Result<(), Failure> {
    match command {
        Replay::Start(asked) => start(&operator, asked).await,
        Replay::List { limit, output } => {
            let replays = operator.replay_list(None, limit).await?;
            Ok(output::answer(output.output, &replays, |replays| as_table(replays, limit))?)
        }
        Replay::Show { replay, watch: false, output } => {
            let shown = one(&operator, replay).await?;
            Ok(output::answer(output.output, &shown, as_facts)?)
        }
        Replay::Show { replay, watch: true, output } => watch(&operator, replay, output.output).await,
        Replay::Pause(decision) => decide(&operator, ReplayChange::Pause, decision).await,
        Replay::Resume { skip, decision } => {
            let change = if skip { ReplayChange::Skip } else { ReplayChange::Resume };
            decide(&operator, change, decision).await
        }
        Replay::Cancel(decision) => decide(&operator, ReplayChange::Cancel, decision).await,
    }
}

/// What was found.
#[derive(Debug, Default)]
struct Found {
    total: u64,
    /// All of them, as long as they are few or named by id.
    seqs: Vec<Seq>,
    first: Seq,
    last: Seq,
    looked_at: u64,
}

/// What was asked for, or would be.
#[derive(Debug, Serialize)]
struct Started {
    /// Its number; `None`: nothing was asked for.
    replay: Option<i64>,
    /// Messages that are meant.
    total: u64,
    /// Messages that were looked at.
    looked_at: u64,
    to_topic: Option<String>,
    rate: Option<u32>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    sample: Vec<ReplaySample>,
}

async fn start(operator: &impl OperateReplays, asked: ReplayStart) -> Result<(), Failure> {
    let filter = filter(&asked)?;
    let found = find(operator, &filter).await?;
    if found.total == 0 {
        return Err(Failure::usage(anyhow!(
            "no dispatched message is meant, of {} that were looked at: what waits or is held is not dispatched, and what was purged is \
             gone",
            found.looked_at
        )));
    }
    let format = asked.output.output;
    let is_many = found.total > FEW;
    let mut answer = Started {
        replay: None,
        total: found.total,
        looked_at: found.looked_at,
        to_topic: asked.to_topic.clone(),
        rate: asked.rate,
        sample: Vec::new(),
    };
    if asked.dry_run || (is_many && !asked.yes) {
        let shown = &found.seqs[..found.seqs.len().min(SAMPLE)];
        answer.sample = operator.replay_sample(shown).await?;
        output::answer(format, &answer, rehearsal)?;
        if asked.dry_run {
            return Ok(());
        }
        return Err(Failure::usage(anyhow!(
            "nothing was done: {} messages are many; run it again with --yes to publish them, or with --dry-run to look alone",
            found.total
        )));
    }
    let names_each = !is_many || !filter.ids.is_empty();
    let request = ReplayRequest {
        filter,
        seqs: names_each.then_some(found.seqs),
        first: found.first,
        last: found.last,
        total: found.total,
        to_topic: asked.to_topic,
        rate: asked.rate,
    };
    let action =
        AuditedAction { who: asked.who.unwrap_or_else(os_user), why: asked.reason.unwrap_or_default() };
    answer.replay = Some(operator.replay_start(&request, &action).await?);
    Ok(output::answer(format, &answer, |answer| {
        let number = answer.replay.unwrap_or_default();
        format!(
            "replay {number} is asked for: the leader publishes {} messages again\n`outboxd replay show {number} --watch` shows how far it is",
            answer.total
        )
    })?)
}

/// What the conditions mean.
fn filter(asked: &ReplayStart) -> Result<ReplayFilter, Failure> {
    let is_empty = asked.ids.is_empty()
        && asked.correlation_id.is_none()
        && asked.topic.is_none()
        && asked.from.is_none()
        && asked.to.is_none();
    if is_empty {
        return Err(Failure::usage(anyhow!(
            "say which messages: --id, --correlation-id, --topic, --key, --from or --to; --topic '*' means every dispatched message"
        )));
    }
    if asked.key.is_some() && asked.topic.as_ref().is_some_and(|topic| topic.only().is_none()) {
        return Err(Failure::usage(anyhow!(
            "--key needs one topic: a key has its place in the order of each topic"
        )));
    }
    if let Some(topic) = asked.to_topic.as_ref().filter(|topic| !topic_is_legal(topic)) {
        return Err(Failure::usage(anyhow!(
            "--to-topic {topic:?} is no topic that the relay publishes to: 1 to 249 of a-z A-Z 0-9 . _ -, not starting with __"
        )));
    }
    if let (Some(from), Some(to)) = (asked.from, asked.to)
        && from >= to
    {
        return Err(Failure::usage(anyhow!("--from is not before --to: nothing lies between them")));
    }
    Ok(ReplayFilter {
        ids: asked.ids.clone(),
        correlation_id: asked.correlation_id.clone(),
        topic: asked.topic.clone(),
        key: asked.key.clone(),
        from: asked.from,
        before: asked.to,
    })
}

/// Looks for the messages, step by step: a table of millions costs many short statements and no long one.
async fn find(operator: &impl OperateReplays, filter: &ReplayFilter) -> Result<Found, Failure> {
    let keep = if filter.ids.is_empty() { FEW } else { NAMED_MAX };
    let mut found = Found::default();
    let mut span = ReplaySpan { above: Seq(0), up_to: None, rows: STEP };
    let progress = bar("{bar:40} {msg}");
    loop {
        let step = operator.replay_find(filter, span).await?;
        if let (Some(first), Some(last)) = (step.seqs.first(), step.seqs.last()) {
            if found.total == 0 {
                found.first = *first;
            }
            found.last = *last;
        }
        found.total += step.seqs.len() as u64;
        found.looked_at += step.looked_at;
        if found.total <= keep {
            found.seqs.extend(&step.seqs);
        } else {
            found.seqs.truncate(SAMPLE);
            found.seqs.extend(step.seqs.iter().take(SAMPLE - found.seqs.len()));
        }
        let (reached, up_to) = (position(step.reached), position(step.up_to));
        progress.set_length(up_to);
        progress.set_position(reached);
        progress.set_message(format!("{} found, {} looked at", found.total, found.looked_at));
        if step.is_last() {
            break;
        }
        span = ReplaySpan { above: step.reached, up_to: Some(step.up_to), ..span };
    }
    progress.finish_and_clear();
    if !filter.ids.is_empty() && found.total > keep {
        return Err(Failure::usage(anyhow!("{} messages have these ids: name fewer", found.total)));
    }
    Ok(found)
}

fn position(seq: Seq) -> u64 {
    u64::try_from(seq.0).unwrap_or(0)
}

async fn one(operator: &impl OperateReplays, replay: i64) -> Result<ReplayInfo, Failure> {
    let found = operator.replay_list(Some(replay), 1).await?.pop();
    found.ok_or_else(|| ReplayError::NoSuch(replay).into())
}

async fn decide(
    operator: &impl OperateReplays,
    change: ReplayChange,
    decision: ReplayDecision,
) -> Result<(), Failure> {
    let action = AuditedAction { who: decision.who.unwrap_or_else(os_user), why: decision.reason };
    operator.replay_change(decision.replay, change, &action).await?;
    let shown = one(operator, decision.replay).await?;
    Ok(output::answer(decision.output.output, &shown, |shown| {
        let (replay, published, total) = (shown.replay, shown.published, shown.total);
        match change {
            ReplayChange::Pause => {
                format!(
                    "replay {replay} rests after {published} of {total} messages; what is with Kafka already is published"
                )
            }
            ReplayChange::Resume => format!("replay {replay} goes on after {published} of {total} messages"),
            ReplayChange::Skip => {
                format!(
                    "replay {replay} goes on after {published} of {total} messages, without the one that it was stopped by"
                )
            }
            ReplayChange::Cancel => {
                format!("replay {replay} is given up after {published} of {total} messages")
            }
        }
    })?)
}

/// Shows it until nothing happens any more by itself. JSON: one answer a change.
async fn watch(operator: &impl OperateReplays, replay: i64, format: Format) -> Result<(), Failure> {
    let progress = bar("{bar:40} {msg}");
    let (mut before, mut said): (Option<(Instant, u64)>, Option<u64>) = (None, None);
    let shown = loop {
        let shown = one(operator, replay).await?;
        let now = Instant::now();
        let rate = before.map_or(0.0, |(at, published)| {
            to_f64(shown.published.saturating_sub(published)) / (now - at).as_secs_f64().max(0.001)
        });
        progress.set_length(shown.total);
        progress.set_position(shown.published + shown.skipped);
        progress.set_message(line(&shown, rate));
        if said != Some(shown.published) && progress.is_hidden() && format == Format::Table {
            output::print(&line(&shown, rate))?;
            said = Some(shown.published);
        }
        if shown.state != ReplayState::Running {
            break shown;
        }
        before = Some((now, shown.published));
        tokio::time::sleep(WATCH_EVERY).await;
    };
    progress.finish_and_clear();
    Ok(output::answer(format, &shown, as_facts)?)
}

fn line(shown: &ReplayInfo, rate: f64) -> String {
    let left = shown.total.saturating_sub(shown.published + shown.skipped);
    let eta = (rate >= 0.5 && left > 0)
        .then(|| Duration::try_from_secs_f64(to_f64(left) / rate).ok())
        .flatten()
        .map_or_else(String::new, |eta| format!(", {} left", output::duration(eta)));
    format!("{}: {} of {} published, {rate:.0}/s{eta}", shown.state.as_str(), shown.published, shown.total)
}

fn to_f64(number: u64) -> f64 {
    u32::try_from(number).map_or_else(|_| number as f64, f64::from)
}

fn rehearsal(answer: &Started) -> String {
    let to = answer.to_topic.as_ref().map_or_else(String::new, |topic| format!(" to topic {topic}"));
    let mut text = format!("This would publish {} messages again{to}; nothing is changed.\n\n", answer.total);
    let row = |sample: &ReplaySample| {
        [
            sample.id.to_string(),
            sample.topic.clone(),
            output::time(sample.created_at),
            sample.correlation_id.clone(),
            sample.payload_bytes.map_or_else(|| "tombstone".to_owned(), |bytes| bytes.to_string()),
        ]
    };
    let head = ["ID", "TOPIC", "INSERTED", "CORRELATION ID", "PAYLOAD BYTES"];
    text.push_str(&output::table(head, answer.sample.iter().map(row)));
    let shown = answer.sample.len() as u64;
    if shown < answer.total {
        text.push_str(&format!("\n\nThe oldest {shown} of {} are shown.", answer.total));
    }
    text
}

fn as_table(replays: &[ReplayInfo], limit: u32) -> String {
    if replays.is_empty() {
        return "nobody has asked for a replay".to_owned();
    }
    let row = |replay: &ReplayInfo| {
        [
            replay.replay.to_string(),
            replay.state.as_str().to_owned(),
            format!("{} of {}", replay.published, replay.total),
            meant(replay),
            output::time(replay.requested_at),
            replay.who.clone(),
            replay.why.clone(),
        ]
    };
    let head = ["REPLAY", "STATE", "PUBLISHED", "MESSAGES", "REQUESTED", "WHO", "WHY"];
    let mut text = output::table(head, replays.iter().map(row));
    if limit > 0 && replays.len() >= usize::try_from(limit).unwrap_or(usize::MAX) {
        text.push_str(&format!("\n\nThe newest {limit} are shown; --limit 0 shows all."));
    }
    text
}

/// What it means, in few words.
fn meant(replay: &ReplayInfo) -> String {
    let mut words: Vec<String> = Vec::new();
    words.extend(replay.correlation_id.as_ref().map(|id| format!("correlation id {id}")));
    words.extend(replay.topic.as_ref().map(|topic| format!("topic {topic}")));
    words.extend(replay.from.map(|at| format!("from {}", output::time(at))));
    words.extend(replay.before.map(|at| format!("before {}", output::time(at))));
    words.extend(replay.named.map(|named| format!("{named} named")));
    if words.is_empty() { "all".to_owned() } else { words.join(", ") }
}

fn as_facts(shown: &ReplayInfo) -> String {
    let dash = || "-".to_owned();
    let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(dash);
    let mut text = output::facts(&[
        ("replay", shown.replay.to_string()),
        ("state", shown.state.as_str().to_owned()),
        ("messages", meant(shown)),
        ("to topic", shown.to_topic.clone().unwrap_or_else(|| "each to its own".to_owned())),
        (
            "rate",
            shown.rate.map_or_else(|| "beside live messages".to_owned(), |rate| format!("{rate} a second")),
        ),
        ("published", format!("{} of {}", shown.published, shown.total)),
        ("left out", shown.skipped.to_string()),
        ("up to seq", format!("{} of {} to {}", shown.pos, shown.first, shown.last)),
        ("error", or_dash(&shown.error)),
        ("stopped by", shown.stopped_by.map_or_else(dash, |id| id.to_string())),
        ("requested", format!("{} by {}: {}", output::time(shown.requested_at), shown.who, shown.why)),
        ("last change", output::time(shown.changed_at)),
        ("changed by", shown.changed_by.clone().unwrap_or_else(|| "the relay".to_owned())),
    ]);
    let missing = shown.total.saturating_sub(shown.published + shown.skipped);
    match shown.state {
        ReplayState::Done if missing > 0 => text.push_str(&format!(
            "\n{missing} of the messages that were counted when it was requested were not found when their turn came. Most often they were \
             purged meanwhile (purge.keep_messages_days).\n"
        )),
        ReplayState::Stopped => text.push_str(&format!(
            "\nRemove the cause, then `outboxd replay resume {0} --reason ..`; with --skip it goes on without that message. Or \
             `outboxd replay cancel {0} --reason ..`.\n",
            shown.replay
        )),
        _ => {}
    }
    text
}

/// On standard error, and only if that is a terminal.
fn bar(template: &str) -> ProgressBar {
    let bar = ProgressBar::new(0);
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}
