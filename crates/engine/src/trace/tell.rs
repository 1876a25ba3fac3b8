//! From facts to the answer: the timeline of each message, what became of it, and what caused what. Pure.

use std::collections::{BTreeMap, HashMap};

use outboxd_core::{HoldReason, HoldState, Seq};
use time::OffsetDateTime;
use uuid::Uuid;

use super::waits::{self, Waits};
use super::{
    Action, Contents, Fact, Failed, Gathered, HeldNow, Intent, Landed, PlaceBefore, ReplayAsked, RewindNoted,
    Shown, SilentTerm, Standing, Step, StepKind, TakenBack, Traced, TracedMessage, TracedState, Waiting,
    WasHeld, said,
};

/// So many failed attempts are kept of a hold.
const FAILURES_MAX: usize = 10;

/// Everything about one message.
#[derive(Default)]
struct About {
    place: Option<PlaceBefore>,
    held: Option<HeldNow>,
    was_held: Vec<WasHeld>,
    actions: Vec<Action>,
    waiting: Option<Waiting>,
    cancelled: Option<TakenBack>,
    landed: Vec<Landed>,
}

/// What concerns several messages.
struct Around {
    standing: Standing,
    terms: Vec<SilentTerm>,
    rewinds: Vec<RewindNoted>,
    replays: HashMap<i64, ReplayAsked>,
}

/// Makes the answer.
#[must_use]
pub fn tell(gathered: Gathered) -> Traced {
    let Gathered {
        asked,
        standing,
        intents,
        more,
        facts,
        landed,
        replays,
        transactions,
        place,
        mut notes,
        claims,
        contents,
    } = gathered;
    let mut about: BTreeMap<Seq, About> = BTreeMap::new();
    let dead_letters: Vec<String> = facts.iter().filter_map(dead_letter).collect();
    let (mut terms, mut rewinds) = (Vec::new(), Vec::new());
    for fact in facts {
        match fact {
            Fact::Place(found) => {
                let seq = found.seq;
                about.entry(seq).or_default().place = Some(found);
            }
            Fact::Held(found) => {
                let seq = found.seq;
                about.entry(seq).or_default().held = Some(found);
            }
            Fact::WasHeld(found) => about.entry(found.seq).or_default().was_held.push(found),
            Fact::Action(found) => about.entry(found.seq).or_default().actions.push(found),
            Fact::Scheduled(found) => {
                let seq = found.seq;
                about.entry(seq).or_default().waiting = Some(found);
            }
            Fact::Cancelled(found) => {
                let seq = found.seq;
                about.entry(seq).or_default().cancelled = Some(found);
            }
            Fact::Term(term) => terms.push(term),
            Fact::Rewind(rewind) => rewinds.push(rewind),
        }
    }
    for landed in landed {
        about.entry(landed.seq).or_default().landed.push(landed);
    }
    let replays = replays.into_iter().map(|replay| (replay.replay, replay)).collect();
    let at = standing.now;
    let around = Around { standing, terms, rewinds, replays };
    let mut contents: HashMap<Seq, Contents> = contents.into_iter().map(|one| (one.seq, one)).collect();
    let mut messages = Vec::with_capacity(intents.len());
    for (intent, asked, depth) in tree(intents) {
        let mut about = about.remove(&intent.seq).unwrap_or_default();
        about.landed.sort_by_key(|landed| (landed.settled_at, landed.receipt));
        let claims: Vec<_> = claims.iter().filter(|claim| claim.id == intent.id).cloned().collect();
        let (state, waits) = about.state(&intent, &around.standing);
        let timeline = timeline(&intent, &about, &around, &claims);
        let could_be_since = intent.deliver_after.map_or(intent.created_at, |due| due.max(intent.created_at));
        let first = about.first_copy().map(|landed| landed.acknowledged_at);
        messages.push(TracedMessage {
            asked,
            depth,
            state,
            waits_for: waits.as_ref().map(|waits| waits.what.clone()),
            remedy: waits.and_then(|waits| waits.remedy),
            delivered_after_ms: first.map(|at| millis(could_be_since, at)),
            copies: about.landed,
            claims,
            timeline,
            contents: contents.remove(&intent.seq).map(shown),
            intent,
        });
    }
    if let Some(place) = place {
        notes.insert(0, confirmed(&place, &messages, &dead_letters));
    }
    let mut open = Vec::new();
    if let Some((xid, transactions)) = transactions {
        notes.extend(waits::transaction(xid, !messages.is_empty(), transactions.as_ref()));
        open = transactions.map_or_else(Vec::new, |transactions| transactions.open);
    }
    Traced { asked, at, messages, more, notes, transactions: open }
}

/// The place of a dead-letter copy.
fn dead_letter(fact: &Fact) -> Option<String> {
    match fact {
        Fact::Held(held) => held.dead_letter.clone(),
        Fact::WasHeld(held) => held.dead_letter.clone(),
        Fact::Place(_)
        | Fact::Action(_)
        | Fact::Scheduled(_)
        | Fact::Cancelled(_)
        | Fact::Term(_)
        | Fact::Rewind(_) => None,
    }
}

/// Each message behind what caused it, with its depth; otherwise in the order of the outbox.
fn tree(intents: Vec<(Intent, bool)>) -> Vec<(Intent, bool, usize)> {
    // An id that an application has used twice stands for the first.
    let mut seq_of: HashMap<Uuid, Seq> = HashMap::new();
    for (intent, _) in &intents {
        seq_of.entry(intent.id).or_insert(intent.seq);
    }
    let parent_of = |intent: &Intent| {
        let cause = Uuid::try_parse(intent.causation_id.as_deref()?).ok()?;
        // A cause is written before what it causes; so there is no circle.
        seq_of.get(&cause).copied().filter(|cause| *cause < intent.seq)
    };
    let mut children: BTreeMap<Option<Seq>, Vec<(Intent, bool)>> = BTreeMap::new();
    for (intent, asked) in intents {
        children.entry(parent_of(&intent)).or_default().push((intent, asked));
    }
    let mut ordered = Vec::new();
    let mut stack: Vec<(Intent, bool, usize)> = Vec::new();
    let push = |stack: &mut Vec<_>, of: Option<Vec<(Intent, bool)>>, depth| {
        stack.extend(of.into_iter().flatten().rev().map(|(intent, asked)| (intent, asked, depth)));
    };
    push(&mut stack, children.remove(&None), 0);
    while let Some((intent, asked, depth)) = stack.pop() {
        push(&mut stack, children.remove(&Some(intent.seq)), depth + 1);
        ordered.push((intent, asked, depth));
    }
    ordered
}

impl About {
    /// The first copy of the message itself.
    fn first_copy(&self) -> Option<&Landed> {
        self.landed.iter().find(|landed| landed.replay.is_none())
    }

    fn acted(&self, kind: &str) -> Option<&Action> {
        self.actions.iter().rev().find(|action| action.kind == kind)
    }

    /// What became of it, and what it waits for.
    fn state(&self, intent: &Intent, standing: &Standing) -> (TracedState, Option<Waits>) {
        if self.first_copy().is_some() {
            return (TracedState::Delivered, None);
        }
        if let Some(held) = &self.held {
            return (TracedState::Held, Some(waits::held(held, standing)));
        }
        if self.acted("discard").is_some() {
            return (TracedState::Discarded, None);
        }
        if self.acted("cancel").is_some() {
            return (TracedState::Cancelled, None);
        }
        let dealt_with = self.place.as_ref().is_some_and(|place| place.dealt_with);
        if self.waiting.is_some() || !dealt_with {
            if self.cancelled.is_some() {
                return (TracedState::Cancelled, None);
            }
            if let Some(waits) = waits::scheduled(intent, self.waiting.as_ref(), standing) {
                return (TracedState::Scheduled, Some(waits));
            }
            return (TracedState::Backlog, Some(waits::backlog(intent, self.place.as_ref(), standing)));
        }
        if standing.receipts_since.is_none_or(|since| intent.created_at < since) {
            return (TracedState::ReceiptPurged, None);
        }
        let waits = Waits {
            what: "nobody knows: the cursor has passed it, and there is neither a receipt nor a hold".to_owned(),
            remedy: Some(
                "The sweep finds it and has it published: look at outboxd_stranded_total and docs/restore.md.".to_owned(),
            ),
        };
        (TracedState::Unaccounted, Some(waits))
    }

    /// Whether an attempt of the message, held, may have been under way at that time; `again`: the term that would have repeated it.
    fn tried_while_held(&self, at: OffsetDateTime, again: i64) -> bool {
        let under_way = |state, held_at: OffsetDateTime, failures: &[Failed]| match state {
            HoldState::Retry | HoldState::Topic => held_at <= at,
            HoldState::Parked => (held_at..=parked_at(held_at, failures)).contains(&at),
            // It is tried when its turn has come. What one term left unsettled, the next one publishes.
            HoldState::Behind => {
                held_at <= at && self.first_copy().is_some_and(|landed| landed.epoch == again)
            }
        };
        self.held.as_ref().is_some_and(|held| under_way(held.state, held.held_at, &held.failures))
            || self
                .was_held
                .iter()
                .any(|held| at <= held.ended_at && under_way(held.state, held.held_at, &held.failures))
    }

    /// Whether the message may have been with Kafka at that time without being settled.
    fn may_have_been_published(
        &self,
        intent: &Intent,
        at: OffsetDateTime,
        cursor: Option<Seq>,
        again: i64,
    ) -> bool {
        let unsettled = self.first_copy().is_none_or(|landed| at < landed.settled_at);
        let mut holds =
            self.was_held.iter().map(|held| held.held_at).chain(self.held.iter().map(|held| held.held_at));
        let set_aside = holds.any(|since| since <= at);
        // Below the cursor, what was not settled was held, or was committed late.
        let above = cursor.is_none_or(|cursor| cursor < intent.seq);
        let out_of_order = self.first_copy().is_none() && self.place.as_ref().is_some_and(|place| place.late);
        let in_order = !set_aside && (above || out_of_order);
        intent.created_at < at && unsettled && (in_order || self.tried_while_held(at, again))
    }
}

/// Steps as they are found.
#[derive(Default)]
struct Steps(Vec<Step>);

impl Steps {
    fn add(&mut self, at: OffsetDateTime, kind: StepKind, text: impl Into<String>) {
        self.0.push(Step { at, after_ms: None, kind, text: text.into() });
    }

    /// In order, with the time between them. Of one moment, in the order in which they were added.
    fn in_order(mut self) -> Vec<Step> {
        self.0.sort_by_key(|step| step.at);
        let mut before = None;
        for step in &mut self.0 {
            step.after_ms = before.map(|before| millis(before, step.at));
            before = Some(step.at);
        }
        self.0
    }
}

fn timeline(intent: &Intent, about: &About, around: &Around, claims: &[super::Claim]) -> Vec<Step> {
    let mut steps = Steps::default();
    written(&mut steps, intent);
    if let Some(waiting) = &about.waiting {
        let until = said(waiting.due_at);
        steps.add(waiting.scheduled_at, StepKind::Scheduled, format!("the relay set it aside until {until}"));
    }
    if let Some(TakenBack { cancelled_at, who, why, .. }) = &about.cancelled {
        steps.add(
            *cancelled_at,
            StepKind::TakenBack,
            format!("taken back by {who}: {why}; it is not delivered when its time comes"),
        );
    }
    for held in &about.was_held {
        let parked = held.state == HoldState::Parked;
        failed(&mut steps, held.attempts, &held.failures);
        hold(&mut steps, held.held_at, held.reason, parked, &held.failures, held.dead_letter.as_deref());
    }
    if let Some(held) = &about.held {
        let parked = held.state == HoldState::Parked;
        failed(&mut steps, held.attempts, &held.failures);
        hold(&mut steps, held.held_at, held.reason, parked, &held.failures, held.dead_letter.as_deref());
    }
    for action in &about.actions {
        steps.add(action.at, StepKind::Action, acted(action));
    }
    for term in &around.terms {
        let SilentTerm { next_led_at, next_high, epoch, .. } = term;
        if about.may_have_been_published(intent, *next_led_at, Some(*next_high), epoch + 1) {
            steps.add(*next_led_at, StepKind::TermEnded, term_ended(term, intent));
        }
    }
    for rewind in &around.rewinds {
        let among = (rewind.seq_first..=rewind.seq_last).contains(&intent.seq);
        if among && about.may_have_been_published(intent, rewind.at, None, rewind.epoch) {
            steps.add(rewind.at, StepKind::Rewound, rewound(rewind));
        }
    }
    for landed in &about.landed {
        landing(&mut steps, intent, landed, around);
    }
    for claim in claims {
        let place = match (&claim.topic, claim.partition, claim.record_offset) {
            (Some(topic), Some(partition), Some(offset)) => format!(" ({topic}[{partition}]@{offset})"),
            _ => String::new(),
        };
        steps.add(
            claim.claimed_at,
            StepKind::Claimed,
            format!("claimed by consumer {}{place}", claim.consumer),
        );
        if let Some(last) = claim.last_duplicate_at {
            let (consumer, count) = (&claim.consumer, claim.duplicates);
            let copies =
                if count == 1 { "1 further copy".to_owned() } else { format!("{count} further copies") };
            let text = format!("{copies} absorbed by consumer {consumer}, the last one now");
            steps.add(last, StepKind::DuplicateAbsorbed, text);
        }
    }
    steps.in_order()
}

fn written(steps: &mut Steps, intent: &Intent) {
    let by = intent.xid.as_deref().map_or_else(String::new, |xid| format!(" by transaction {xid}"));
    let cause = match intent.causation_id.as_deref() {
        None => String::new(),
        Some(cause) if Uuid::try_parse(cause).is_ok() => format!(", caused by message {cause}"),
        Some(cause) => format!(", caused by {cause}"),
    };
    let later = intent
        .deliver_after
        .map_or_else(String::new, |due| format!(", not to be delivered before {}", said(due)));
    steps.add(
        intent.created_at,
        StepKind::Written,
        format!("written{by} for topic {}{cause}{later}", intent.topic),
    );
}

/// Failed attempts, as far as they are kept.
fn failed(steps: &mut Steps, attempts: u32, failures: &[Failed]) {
    if let [first, ..] = failures
        && failures.len() >= FAILURES_MAX
        && usize::try_from(attempts).is_ok_and(|attempts| attempts > failures.len())
    {
        steps.add(first.at, StepKind::AttemptFailed, "earlier attempts are not kept");
    }
    for Failed { at, error } in failures {
        steps.add(*at, StepKind::AttemptFailed, format!("attempt failed: {error}"));
    }
}

/// A hold, and how it was parked.
fn hold(
    steps: &mut Steps,
    at: OffsetDateTime,
    reason: HoldReason,
    parked: bool,
    failures: &[Failed],
    dead_letter: Option<&str>,
) {
    let word = reason.as_str();
    let what = reason.explained().what;
    if parked {
        let copy = dead_letter.map_or_else(String::new, |place| format!(" Dead-letter copy at {place}."));
        steps.add(parked_at(at, failures), StepKind::Parked, format!("parked ({word}): {what}{copy}"));
    } else {
        steps.add(at, StepKind::Held, format!("held ({word}): {what}"));
        if let Some(place) = dead_letter {
            steps.add(at, StepKind::Parked, format!("it was parked then; dead-letter copy at {place}"));
        }
    }
}

/// When a message that is held since then was parked: when its last attempt had failed.
fn parked_at(held_at: OffsetDateTime, failures: &[Failed]) -> OffsetDateTime {
    failures.last().map_or(held_at, |failed| failed.at.max(held_at))
}

fn acted(action: &Action) -> String {
    let Action { kind, who, why, details, .. } = action;
    let what = match kind.as_str() {
        "retry" => "retried",
        "discard" => "discarded",
        "edit" => "edited",
        "cancel" => "not delivered: taken back",
        "sweep" => "found by the sweep",
        other => other,
    };
    let changed = details
        .as_ref()
        .and_then(|details| details["changed"].as_array())
        .map(|words| words.iter().filter_map(serde_json::Value::as_str).collect::<Vec<_>>().join(", "))
        .map_or_else(String::new, |changed| format!(" ({changed})"));
    format!("{what} by {who}{changed}: {why}")
}

fn term_ended(term: &SilentTerm, intent: &Intent) -> String {
    let SilentTerm { epoch, relay, next_high, .. } = term;
    let ended = format!("term {epoch} of relay {relay} ended without a word");
    if intent.seq > *next_high {
        let seq = intent.seq;
        return format!(
            "{ended}; the next one began again above seq {next_high} (this is {seq}): it may be there twice"
        );
    }
    format!(
        "{ended}; this one was out of order then, held or committed late: if it was under way, it may be there twice"
    )
}

fn rewound(rewind: &RewindNoted) -> String {
    let relay = rewind.relay.as_deref().unwrap_or("the relay");
    let why = match rewind.reason.as_str() {
        "outage" => "Kafka did not answer in a way that says what it kept",
        "tried alone" => "a message failed in company and was to be tried alone",
        other => other,
    };
    format!(
        "relay {relay} (term {}) went back to the settled cursor: {why}; {} of the messages from seq {} to {} may be there twice",
        rewind.epoch, rewind.messages, rewind.seq_first, rewind.seq_last
    )
}

fn landing(steps: &mut Steps, intent: &Intent, landed: &Landed, around: &Around) {
    let relay = landed.relay.as_deref().unwrap_or("-");
    let place = format!("{}[{}]@{}", landed.topic, landed.partition, landed.offset);
    let settled = format!("settled: receipt {}, term {}, relay {relay}", landed.receipt, landed.epoch);
    let Some(number) = landed.replay else {
        let at = landed.acknowledged_at.max(intent.created_at);
        steps.add(at, StepKind::Acknowledged, format!("acknowledged at {place}"));
        steps.add(landed.settled_at.max(at), StepKind::Settled, settled);
        return;
    };
    if let Some(replay) = around.replays.get(&number) {
        let to = replay.to_topic.as_deref().map_or_else(String::new, |topic| format!(" to topic {topic}"));
        steps.add(
            replay.requested_at,
            StepKind::ReplayAsked,
            format!("replay {number}{to} asked for by {}: {}", replay.who, replay.why),
        );
    }
    steps.add(
        landed.acknowledged_at,
        StepKind::Replayed,
        format!("acknowledged again at {place}: replay {number}"),
    );
    steps.add(landed.settled_at, StepKind::Settled, settled);
}

/// Whether receipts know the record that was asked for. An id that was used twice stands for several messages.
fn confirmed(place: &super::Place, messages: &[TracedMessage], dead_letters: &[String]) -> String {
    let asked = || messages.iter().filter(|message| message.asked);
    if asked().next().is_none() {
        return format!(
            "the record at {place} names a message that this outbox does not hold: purged, or not of this outbox"
        );
    }
    if dead_letters.contains(&place.to_string()) {
        return format!(
            "the record at {place} is the dead-letter copy of this message, made when it was parked"
        );
    }
    let is_here = |landed: &&Landed| {
        landed.topic == place.topic && landed.partition == place.partition && landed.offset == place.offset
    };
    let copies = || asked().flat_map(|message| &message.copies);
    if let Some(Landed { receipt, replay, .. }) = copies().find(is_here) {
        return match replay {
            Some(replay) => {
                format!("the record at {place} is a copy of replay {replay}, as receipt {receipt} says")
            }
            None => format!("the record at {place} is this message, as receipt {receipt} says"),
        };
    }
    if asked().any(|message| message.state == TracedState::ReceiptPurged) {
        return format!(
            "the record at {place} is a copy of this message; receipts of that time are purged, so whether it is the one that was \
             settled is not known"
        );
    }
    match copies().next() {
        Some(landed) => format!(
            "the record at {place} is another copy of this message: no receipt names it, so it was published by a relay that ended, \
             or went back, before it could settle it; receipt {} names {}[{}]@{}",
            landed.receipt, landed.topic, landed.partition, landed.offset
        ),
        None => format!("the record at {place} is a copy of this message that is not settled"),
    }
}

fn millis(from: OffsetDateTime, to: OffsetDateTime) -> i64 {
    i64::try_from((to - from).whole_milliseconds()).unwrap_or(i64::MAX)
}

fn shown(contents: Contents) -> Shown {
    let (payload, payload_hex) = match contents.payload.map(String::from_utf8) {
        None => (None, None),
        Some(Ok(text)) => (Some(text), None),
        Some(Err(error)) => {
            let hex = error.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
            (None, Some(hex))
        }
    };
    Shown { key: contents.key, headers: contents.headers, payload, payload_hex }
}
