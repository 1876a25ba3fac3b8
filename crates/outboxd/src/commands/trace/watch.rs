//! `trace --watch`: asks again, and prints what is new.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use anyhow::Context as _;
use outboxd_core::Seq;
use outboxd_engine::trace::{TraceQuery, Traced};
use time::OffsetDateTime;
use tokio::time::Instant;

use super::{Tracer, table, warn};
use crate::cli::Format;
use crate::failure::Failure;
use crate::output;

/// Between two questions, unless an answer takes longer.
const EVERY: Duration = Duration::from_millis(500);

/// Asks until everything that was found is delivered, or given up; what does not exist yet is waited for.
pub(super) async fn watch(tracer: &Tracer, query: &TraceQuery, format: Format) -> Result<(), Failure> {
    let mut told = Told::default();
    let mut said: &(dyn Fn(&str) + Send + Sync) = &warn;
    loop {
        let asked = Instant::now();
        let traced = tracer.answer(query, said).await?;
        let took = asked.elapsed();
        let text = match format {
            Format::Table => told.news(&traced),
            Format::Json => told.changed(&traced)?,
        };
        if let Some(text) = text {
            output::print(&text)?;
        }
        if traced.is_final() {
            return Ok(());
        }
        // Once is enough; and a walk over the table is not to keep the database busy.
        said = &|_| ();
        tokio::time::sleep(EVERY.max(took)).await;
    }
}

/// What was printed already.
#[derive(Default)]
struct Told {
    headline: String,
    steps: HashSet<(Seq, OffsetDateTime, String)>,
    waits: HashMap<Seq, String>,
    json: String,
}

impl Told {
    /// Lines that are new.
    fn news(&mut self, traced: &Traced) -> Option<String> {
        let mut text = String::new();
        let headline = table::headline(traced);
        if headline != self.headline {
            text.push_str(&headline);
            self.headline = headline;
        }
        for message in &traced.messages {
            let seq = message.intent.seq;
            let mut lines = String::new();
            for step in &message.timeline {
                if self.steps.insert((seq, step.at, step.text.clone())) {
                    lines.push_str(&table::line(step));
                }
            }
            let waits = message.waits_for.clone().unwrap_or_default();
            if self.waits.get(&seq) != Some(&waits) {
                if !waits.is_empty() {
                    lines.push_str(&format!("  waits: {}\n", output::one_line(&waits)));
                }
                self.waits.insert(seq, waits);
            }
            if !lines.is_empty() {
                text.push_str(&format!(
                    "message {} to topic {}\n{lines}",
                    message.intent.id,
                    output::one_line(&message.intent.topic)
                ));
            }
        }
        (!text.is_empty()).then_some(text)
    }

    /// The whole answer on one line, if anything but its time has changed.
    fn changed(&mut self, traced: &Traced) -> anyhow::Result<Option<String>> {
        let mut json = serde_json::to_value(traced).context("write the answer as JSON")?;
        let line = json.to_string();
        if let Some(answer) = json.as_object_mut() {
            answer.remove("at");
        }
        let now = json.to_string();
        if now == self.json {
            return Ok(None);
        }
        self.json = now;
        Ok(Some(line))
    }
}
