//! The answer for people.

use std::time::Duration;

use outboxd_engine::trace::{Shown, Step, Traced, TracedMessage};

use crate::output::{self, lines, one_line};

/// Timelines of at most so many messages are printed; beyond, of those that are undelivered.
const TIMELINES_MAX: usize = 10;
/// A payload is cut after so many characters.
const PAYLOAD_MAX: usize = 2_000;

/// The whole answer.
pub(super) fn text(traced: &Traced) -> String {
    let mut text = headline(traced);
    if traced.messages.len() > 1 {
        text.push('\n');
        text.push_str(&overview(&traced.messages));
        text.push('\n');
    }
    let asked: Vec<&TracedMessage> = traced.messages.iter().filter(|message| message.asked).collect();
    let all = asked.len() <= TIMELINES_MAX;
    let shown: Vec<&TracedMessage> = asked
        .iter()
        .copied()
        .filter(|message| all || !message.state.is_final())
        .take(TIMELINES_MAX)
        .collect();
    for message in &shown {
        text.push('\n');
        text.push_str(&one(message));
    }
    if shown.len() < asked.len() {
        text.push_str(&format!(
            "\nThe timelines of {} of {} messages are shown, undelivered ones only: name a message id for another, or use --output json.\n",
            shown.len(),
            asked.len()
        ));
    }
    if traced.more {
        text.push_str("\nThere are more: raise --limit.\n");
    }
    text
}

/// What was asked for and how much was found, with what is to be said of all of it.
pub(super) fn headline(traced: &Traced) -> String {
    let mut counts: Vec<(&str, usize)> = Vec::new();
    for message in &traced.messages {
        let state = message.state.as_str();
        match counts.iter_mut().find(|(counted, _)| *counted == state) {
            Some((_, count)) => *count += 1,
            None => counts.push((state, 1)),
        }
    }
    let counts: Vec<String> = counts.into_iter().map(|(state, count)| format!("{count} {state}")).collect();
    let asked = one_line(&traced.asked);
    let mut text = match traced.messages.len() {
        0 => format!("{asked}: nothing found\n"),
        1 => format!("{asked}: 1 message, {}\n", counts.join(", ")),
        many => format!("{asked}: {many} messages, {}\n", counts.join(", ")),
    };
    for note in &traced.notes {
        text.push_str(&format!("  {}\n", one_line(note)));
    }
    text
}

fn overview(messages: &[TracedMessage]) -> String {
    let row = |message: &TracedMessage| {
        let branch = match message.depth {
            0 => String::new(),
            depth => format!("{}\u{2514} ", "  ".repeat(depth - 1)),
        };
        let copies = message.copies.iter().filter(|landed| landed.replay.is_none());
        let places: Vec<String> = copies
            .map(|landed| format!("{}[{}]@{}", landed.topic, landed.partition, landed.offset))
            .collect();
        [
            format!("{branch}{}", message.intent.id),
            message.intent.topic.clone(),
            message.state.as_str().to_owned(),
            message.delivered_after_ms.map_or_else(|| "-".to_owned(), took),
            if places.is_empty() { "-".to_owned() } else { places.join(" ") },
        ]
    };
    output::table(["MESSAGE", "TOPIC", "STATE", "AFTER", "WHERE"], messages.iter().map(row))
}

fn one(message: &TracedMessage) -> String {
    let intent = &message.intent;
    let size = match intent.payload_bytes {
        None => "tombstone".to_owned(),
        Some(1) => "1 byte".to_owned(),
        Some(bytes) => format!("{bytes} bytes"),
    };
    let correlation_id = one_line(&intent.correlation_id);
    let mut text = format!("message {}, correlation id {correlation_id}, {size}\n", intent.id);
    for (name, value) in [("traceparent", &intent.traceparent), ("idempotency key", &intent.idempotency_key)]
    {
        if let Some(value) = value {
            text.push_str(&format!("  {name} {}\n", one_line(value)));
        }
    }
    for step in &message.timeline {
        text.push_str(&line(step));
    }
    if let Some(ms) = message.delivered_after_ms {
        let from = if intent.deliver_after.is_some() { "its time came" } else { "it was written" };
        text.push_str(&format!("  delivered {} after {from}\n", took(ms)));
    }
    if let Some(waits) = &message.waits_for {
        text.push_str(&format!("  waits: {}\n", one_line(waits)));
    }
    if let Some(remedy) = &message.remedy {
        text.push_str(&format!("  what to do: {remedy}\n"));
    }
    if let Some(shown) = &message.contents {
        text.push_str(&contents(shown));
    }
    text
}

/// A line of a timeline.
pub(super) fn line(step: &Step) -> String {
    let after = step.after_ms.map_or_else(String::new, |ms| format!("+{}", took(ms)));
    format!("  {}  {after:>12}  {}\n", output::time(step.at), one_line(&step.text))
}

/// Milliseconds as long as they can be read at a glance.
fn took(ms: i64) -> String {
    match u64::try_from(ms) {
        Ok(long) if long >= 10_000 => output::duration(Duration::from_millis(long)),
        Ok(_) | Err(_) => format!("{ms} ms"),
    }
}

fn contents(shown: &Shown) -> String {
    let mut text = format!("  key {}\n", one_line(shown.key.as_deref().unwrap_or("-")));
    if let Some(headers) = &shown.headers {
        text.push_str(&format!("  headers {}\n", one_line(&headers.to_string())));
    }
    match (&shown.payload, &shown.payload_hex) {
        (Some(payload), _) => text.push_str(&cut("payload", payload)),
        (None, Some(hex)) => text.push_str(&cut("payload, in hexadecimal digits,", hex)),
        (None, None) => text.push_str("  payload: none, a tombstone\n"),
    }
    text
}

fn cut(what: &str, payload: &str) -> String {
    match payload.char_indices().nth(PAYLOAD_MAX) {
        None => format!("  {what} {}\n", lines(payload)),
        Some((at, _)) => {
            format!("  {what} {} ... (cut here; --output json has all of it)\n", lines(&payload[..at]))
        }
    }
}
