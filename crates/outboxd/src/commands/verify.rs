//! `verify`.

use std::time::Duration;

use anyhow::anyhow;
use indicatif::{ProgressBar, ProgressStyle};
use outboxd_core::Seq;
use outboxd_engine::verify::place_of;
use outboxd_engine::{Verify as Asked, Wanted};
use outboxd_kafka::KafkaConfig;
use outboxd_postgres::PostgresOperator;
use outboxd_sqlite::SqliteOperator;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use serde::Serialize;
use time::OffsetDateTime;
use tokio::time::Instant;

use crate::adapters::Adapter;
use crate::cli::Verify;
use crate::failure::Failure;
use crate::output;
use crate::verify::{Clock, Report, Verifier, VerifyError};

/// Messages of a page.
const PAGE: u32 = 10_000;

/// Messages of a page of a sample.
const SAMPLE_PAGE: usize = 500;

/// Clocks and transactions make `seq` and time differ by less than this.
const SLACK: time::Duration = time::Duration::minutes(1);

/// What is printed.
#[derive(Serialize)]
struct Answer {
    #[serde(with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    from: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    to: Option<OffsetDateTime>,
    #[serde(skip_serializing_if = "Option::is_none")]
    topic: Option<String>,
    /// With it the same sample is taken again.
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<u64>,
    /// Nothing is wrong.
    ok: bool,
    #[serde(flatten)]
    report: Report,
    seconds: f64,
    messages_per_second: f64,
}

/// Proves delivery, and says what is not as it should be.
pub(crate) async fn verify(adapter: Adapter, kafka: &KafkaConfig, asked: Verify) -> Result<(), Failure> {
    match adapter {
        Adapter::Postgres(config) => verify_with(PostgresOperator::new(*config), kafka, asked).await,
        Adapter::Sqlite(config) => verify_with(SqliteOperator::new(config), kafka, asked).await,
    }
}

/// What is looked at.
struct Range {
    from: Option<OffsetDateTime>,
    to: Option<OffsetDateTime>,
    clock: Clock,
    places: Option<(Seq, Seq)>,
}

impl Range {
    async fn of(outbox: &impl Asked, asked: &Verify) -> Result<Self, VerifyError> {
        let now = outbox.history().await?.now;
        let clock = Clock::set(now);
        let from = asked.from.map(|from| from.at(now));
        let to = asked.to.map(|to| to.at(now));
        let Some((mut first, mut last)) = outbox.ends().await? else {
            return Ok(Self { from, to, clock, places: None });
        };
        let place = async |time| place_of(outbox, time, first, last).await;
        let (begin, end) = (
            match from {
                Some(from) => place(from.saturating_sub(SLACK)).await?,
                None => Some(first),
            },
            match to {
                Some(to) => place(to.saturating_add(SLACK)).await?,
                None => None,
            },
        );
        let Some(begin) = begin else { return Ok(Self { from, to, clock, places: None }) };
        first = begin;
        last = end.map_or(last, |end| Seq(end.0 - 1));
        Ok(Self { from, to, clock, places: (first <= last).then_some((first, last)) })
    }

    fn contains(&self, inserted: OffsetDateTime) -> bool {
        self.from.is_none_or(|from| inserted >= from) && self.to.is_none_or(|to| inserted < to)
    }
}

async fn verify_with<O: Asked>(outbox: O, kafka: &KafkaConfig, asked: Verify) -> Result<(), Failure> {
    let range = Range::of(&outbox, &asked).await?;
    let mut verifier = match asked.sample {
        Some(_) => Verifier::sampling(outbox, kafka).await?,
        None => Verifier::reading_all(outbox, kafka).await?,
    }
    .only(asked.topic.clone());
    let pace = Pace { began: Instant::now(), rate: asked.rate };
    let mut seed = None;
    if let Some((first, last)) = range.places {
        match asked.sample {
            None => all(&mut verifier, &range, (first, last), &pace).await?,
            Some(sample) => {
                let chosen = asked.seed.unwrap_or_else(rand::random);
                seed = Some(chosen);
                let places = sample.places(first, last, &mut StdRng::seed_from_u64(chosen));
                some(&mut verifier, &range, places, &pace).await?;
            }
        }
    }
    let report = verifier.take_report();
    let seconds = pace.began.elapsed().as_secs_f64();
    let wrong = report.wrong(asked.strict);
    let messages = report.messages;
    let answer = Answer {
        from: range.from,
        to: range.to,
        topic: asked.topic.map(|topic| topic.as_str().to_owned()),
        seed,
        ok: wrong == 0,
        messages_per_second: (f64::from(u32::try_from(messages).unwrap_or(u32::MAX)) / seconds).round(),
        seconds,
        report,
    };
    output::answer(asked.output.output, &answer, as_table)?;
    if wrong > 0 {
        return Err(Failure::found(anyhow!("{wrong} findings among {messages} messages")));
    }
    Ok(())
}

/// Every message of the range.
async fn all<O: Asked>(
    verifier: &mut Verifier<O>,
    range: &Range,
    (first, last): (Seq, Seq),
    pace: &Pace,
) -> Result<(), VerifyError> {
    let progress = progress(last.0 - first.0 + 1);
    let limit = pace.page(PAGE);
    let (mut above, mut looked_at) = (Seq(first.0 - 1), 0);
    loop {
        let mut prints = verifier.outbox().fingerprints(&Wanted::Next { above, upto: last, limit }).await?;
        let Some(reached) = prints.last().map(|print| print.seq) else { break };
        above = reached;
        prints.retain(|print| range.contains(print.created_at));
        looked_at += verifier.page(prints, range.clock).await?;
        progress.set_position((above.0 - first.0).unsigned_abs());
        pace.keep(looked_at).await;
    }
    verifier.resolve_copies().await?;
    progress.finish_and_clear();
    Ok(())
}

/// The messages at these places.
async fn some<O: Asked>(
    verifier: &mut Verifier<O>,
    range: &Range,
    places: Vec<Seq>,
    pace: &Pace,
) -> Result<(), VerifyError> {
    let progress = progress(i64::try_from(places.len()).unwrap_or(i64::MAX));
    let mut looked_at = 0;
    for places in places.chunks(usize::try_from(pace.page(u32::MAX)).unwrap_or(usize::MAX).min(SAMPLE_PAGE)) {
        let mut prints = verifier.outbox().fingerprints(&Wanted::At(places.to_vec())).await?;
        prints.retain(|print| range.contains(print.created_at));
        looked_at += verifier.page(prints, range.clock).await?;
        progress.inc(places.len() as u64);
        pace.keep(looked_at).await;
    }
    progress.finish_and_clear();
    Ok(())
}

/// How fast it may go.
struct Pace {
    began: Instant,
    rate: Option<u64>,
}

impl Pace {
    /// A page that is no burst.
    fn page(&self, most: u32) -> u32 {
        self.rate.map_or(most, |rate| most.min(u32::try_from(rate).unwrap_or(u32::MAX)))
    }

    /// Waits until so many may have been looked at.
    async fn keep(&self, looked_at: u64) {
        if let Some(rate) = self.rate {
            let due = Duration::from_micros(looked_at.saturating_mul(1_000_000) / rate);
            tokio::time::sleep_until(self.began + due).await;
        }
    }
}

fn progress(places: i64) -> ProgressBar {
    let bar = ProgressBar::new(places.unsigned_abs());
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {human_pos} of {human_len}, {eta} left") {
        bar.set_style(style);
    }
    bar
}

fn as_table(answer: &Answer) -> String {
    let report = &answer.report;
    let mut facts = vec![
        ("messages", report.messages.to_string()),
        ("verified", report.verified.to_string()),
        ("not dispatched", report.not_dispatched.to_string()),
    ];
    if report.verified_replays > 0 {
        facts.push(("verified replays", report.verified_replays.to_string()));
    }
    let words: Vec<String> = report.findings.keys().map(|kind| kind.as_str().replace('_', " ")).collect();
    for (word, count) in words.iter().zip(report.findings.values()) {
        if *count > 0 {
            facts.push((word.as_str(), count.to_string()));
        }
    }
    if let Some(copies) = &report.copies {
        let explained: Vec<String> = copies
            .explained
            .iter()
            .map(|(why, count)| format!("{count} {}", why.replace('_', " ")))
            .collect();
        let explained = if explained.is_empty() { "none".to_owned() } else { explained.join(", ") };
        facts.push(("copies explained", explained));
        facts.push(("records of others", copies.foreign_records.to_string()));
        if copies.offsets_passed_over > 0 {
            facts.push(("offsets passed over", copies.offsets_passed_over.to_string()));
        }
    }
    if let Some(seed) = answer.seed {
        facts.push(("sample", format!("--seed {seed} takes it again")));
    }
    let took = output::duration(Duration::try_from_secs_f64(answer.seconds).unwrap_or_default());
    facts.push(("took", format!("{took}, {} messages a second", answer.messages_per_second)));
    let mut text = output::facts(&facts);
    if report.details.is_empty() {
        text.push_str("Everything is where its receipt says.\n");
        return text;
    }
    let dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let rows = report.details.iter().map(|of| {
        let place = match (of.partition, of.offset) {
            (Some(partition), Some(offset)) => format!("{}[{partition}]@{offset}", of.topic),
            _ => of.topic.clone(),
        };
        let said = match of.replay {
            Some(replay) => format!("{} (a copy of replay {replay})", of.said),
            None => of.said.clone(),
        };
        [of.finding.as_str().replace('_', " "), dash(of.id.map(|id| id.to_string())), place, said]
    });
    text.push('\n');
    text.push_str(&output::table(["finding", "id", "place", "what is there"], rows));
    if report.details_left_out > 0 {
        text.push_str(&format!("\n{} more are counted and not listed", report.details_left_out));
    }
    text
}
