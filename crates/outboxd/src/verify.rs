//! Proving delivery: reads Kafka back at the receipts and compares.
//!
//! Messages are taken in pages, in the order of their places in the outbox. A page's receipts say where to look; each partition is
//! read from the first to the last of them where they lie close together, and at each of them where they do not. What is found is
//! judged by `core::verify`; records that no receipt names are the business of [`copies`]. Memory holds one page, and what is left open
//! of copies, which has a limit.

mod copies;

mod report;

mod continuous;

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use outboxd_core::verify::{Fingerprint, Missing, Retention, Seen, Sha256};
use outboxd_core::{Receipt, Seq, TopicPattern};
use outboxd_engine::{Landing, OutboxError, Verify};
use outboxd_kafka::{KafkaConfig, PlaceReader, ReadError, ReadRecord, Span, retention};
use sha2::Digest as _;
use time::OffsetDateTime;
use tokio::time::Instant;

use crate::failure::Failure;

pub(crate) use continuous::verify_continuously;
use copies::Copies;
pub(crate) use report::{FindingKind, Report};

/// Offsets between two receipts that are read over rather than jumped: a jump costs a round trip.
const OFFSET_GAP: i64 = 1_000;

/// Why nothing can be proved.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VerifyError {
    /// The database.
    #[error(transparent)]
    Outbox(#[from] OutboxError),
    /// Kafka.
    #[error("verify")]
    Kafka(#[from] ReadError),
}

impl From<VerifyError> for Failure {
    fn from(error: VerifyError) -> Self {
        match error {
            VerifyError::Outbox(error) => error.into(),
            VerifyError::Kafka(ReadError::Client(_)) => Self::config(error),
            VerifyError::Kafka(_) => Self::unavailable(error),
        }
    }
}

/// What was published of a message, and where it should be.
struct Expected<'a> {
    print: &'a Fingerprint,
    landing: Landing,
}

/// A place in a topic.
type Place = (i32, i64);

/// What receipts say is at each place of a topic. More than one names a place where the topic was made anew: its offsets began again.
type Places<'a> = HashMap<Place, Vec<Expected<'a>>>;

/// The database's time, which goes on after it was asked: ages are judged when a record is found to be missing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    told: OffsetDateTime,
    at: Instant,
}

impl Clock {
    /// By what the database says now.
    pub(crate) fn set(told: OffsetDateTime) -> Self {
        Self { told, at: Instant::now() }
    }

    fn now(self) -> OffsetDateTime {
        self.told + self.at.elapsed()
    }
}

/// Reads Kafka back.
pub(crate) struct Verifier<O> {
    outbox: O,
    kafka: KafkaConfig,
    reader: PlaceReader,
    topic: Option<TopicPattern>,
    /// What topics may lose, as far as it was asked since the last report.
    retentions: HashMap<String, Option<Retention>>,
    /// `None`: only places that receipts name are looked at.
    copies: Option<Copies>,
    report: Report,
}

impl<O: Verify> Verifier<O> {
    /// One that looks at the places of single messages.
    pub(crate) async fn sampling(outbox: O, kafka: &KafkaConfig) -> Result<Self, VerifyError> {
        Ok(Self {
            outbox,
            reader: PlaceReader::new(kafka).await?,
            kafka: kafka.clone(),
            topic: None,
            retentions: HashMap::new(),
            copies: None,
            report: Report::default(),
        })
    }

    /// One that reads everything between the places, and finds copies.
    pub(crate) async fn reading_all(outbox: O, kafka: &KafkaConfig) -> Result<Self, VerifyError> {
        let sampling = Self::sampling(outbox, kafka).await?;
        Ok(Self { copies: Some(Copies::default()), ..sampling })
    }

    /// Only messages for topics that the pattern matches.
    pub(crate) fn only(self, topic: Option<TopicPattern>) -> Self {
        Self { topic, ..self }
    }

    pub(crate) fn outbox(&self) -> &O {
        &self.outbox
    }

    /// What was found since the last report. What topics may lose is asked anew from now on: it can be changed.
    pub(crate) fn take_report(&mut self) -> Report {
        self.retentions.clear();
        std::mem::take(&mut self.report)
    }

    /// Verifies these messages, ascending by place. Returns how many were looked at.
    pub(crate) async fn page(
        &mut self,
        mut prints: Vec<Fingerprint>,
        clock: Clock,
    ) -> Result<u64, VerifyError> {
        if let Some(pattern) = &self.topic {
            prints.retain(|print| pattern.matches(&print.topic));
        }
        let count = prints.len() as u64;
        self.report.messages += count;
        let mut by_topic: BTreeMap<String, Places<'_>> = BTreeMap::new();
        let mut dispatched = 0;
        let seqs: Vec<Seq> = prints.iter().map(|print| print.seq).collect();
        for landing in self.outbox.landings(&seqs).await? {
            let Ok(nth) = seqs.binary_search(&landing.entry.seq) else { continue };
            dispatched += u64::from(landing.replay.is_none());
            let receipt = landing.entry.receipt;
            let places = by_topic.entry(landing.entry.topic.clone()).or_default();
            let expected = Expected { print: &prints[nth], landing };
            places.entry((receipt.partition, receipt.offset)).or_default().push(expected);
        }
        self.report.not_dispatched += count.saturating_sub(dispatched);
        for (topic, expected) in by_topic {
            self.topic(&topic, expected, clock).await?;
        }
        if self.copies.as_ref().is_some_and(Copies::is_full) {
            self.resolve_copies().await?;
        }
        Ok(count)
    }

    /// What is left open is decided.
    pub(crate) async fn resolve_copies(&mut self) -> Result<(), VerifyError> {
        if let Some(copies) = &mut self.copies {
            copies.resolve(&self.outbox, &mut self.report).await?;
        }
        Ok(())
    }

    async fn topic(
        &mut self,
        topic: &str,
        mut expected: Places<'_>,
        clock: Clock,
    ) -> Result<(), VerifyError> {
        let mut places: Vec<Place> = expected.keys().copied().collect();
        places.sort_unstable();
        let spans = match &mut self.copies {
            None => spans(&places, OFFSET_GAP),
            Some(copies) => copies.plan(topic, &places),
        };
        let (report, copies) = (&mut self.report, &mut self.copies);
        let read = self.reader.read(topic, &spans, |record| {
            match expected.remove(&(record.partition, record.offset)) {
                Some(expected) => compare(report, topic, &expected, &record),
                None => {
                    if let Some(copies) = copies {
                        copies.saw(topic, &record);
                    }
                }
            }
        });
        let bounds = match read.await {
            Ok(bounds) => bounds,
            Err(ReadError::Topic { fault, code, .. }) => {
                let count = expected.values().flatten().count() as u64;
                self.report.whole_topic(topic, fault, &code, count);
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        if expected.is_empty() {
            return Ok(());
        }
        let retention = match self.retentions.get(topic) {
            Some(known) => *known,
            None => {
                let asked = retention(&self.kafka, topic).await?;
                self.retentions.insert(topic.to_owned(), asked);
                asked
            }
        };
        let now = clock.now();
        let mut absent: Vec<Expected<'_>> = expected.into_values().flatten().collect();
        absent.sort_unstable_by_key(|expected| expected.print.seq);
        for expected in absent {
            let Receipt { partition, offset } = expected.landing.entry.receipt;
            let bounds = bounds.get(&partition).copied().unwrap_or_default();
            let age = (now - expected.landing.settled_at).try_into().unwrap_or_default();
            let missing = Missing::of(bounds.absence(offset), age, retention);
            self.report.missing(topic, missing, bounds, expected.print, &expected.landing);
        }
        Ok(())
    }
}

fn compare(report: &mut Report, topic: &str, expected: &[Expected<'_>], record: &ReadRecord) {
    let id = record.header("id").and_then(|id| id.parse().ok());
    let seen = Seen { id, key: hash(record.key.as_ref()), payload: hash(record.payload.as_ref()) };
    for Expected { print, landing } in expected {
        match print.compare(&seen) {
            Ok(()) => report.right(landing.replay.is_some()),
            Err(difference) => report.different(topic, difference, print, landing),
        }
    }
}

fn hash(bytes: Option<&Bytes>) -> Option<Sha256> {
    bytes.map(|bytes| sha2::Sha256::digest(bytes).into())
}

/// Runs of offsets that hold these places, which are sorted, and at most so many offsets between two of them.
fn spans(places: &[Place], gap: i64) -> Vec<Span> {
    let mut spans: Vec<Span> = Vec::new();
    for (partition, offset) in places {
        match spans.last_mut() {
            Some(span) if span.partition == *partition && offset - span.last <= gap => span.last = *offset,
            Some(_) | None => spans.push(Span { partition: *partition, first: *offset, last: *offset }),
        }
    }
    spans
}

/// Which places of a range are looked at.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Sample {
    /// About so many.
    Messages(u64),
    /// Each with this probability.
    Fraction(f64),
}

impl Sample {
    /// The places, ascending; some of them may hold no message.
    pub(crate) fn places(self, first: Seq, last: Seq, rng: &mut rand::rngs::StdRng) -> Vec<Seq> {
        use rand::RngExt as _;
        match self {
            Self::Messages(count) => {
                let mut places: Vec<Seq> =
                    (0..count).map(|_| Seq(rng.random_range(first.0..=last.0))).collect();
                places.sort_unstable();
                places.dedup();
                places
            }
            Self::Fraction(probability) => {
                (first.0..=last.0).filter(|_| rng.random_bool(probability)).map(Seq).collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rand::SeedableRng as _;

    use super::*;

    #[test]
    fn places_that_lie_close_together_are_read_in_one_go() {
        let places = [(0, 1), (0, 5), (0, 2_000), (1, 2_001)];
        let span = |partition, first, last| Span { partition, first, last };
        assert_eq!(spans(&places, 1_000), [span(0, 1, 5), span(0, 2_000, 2_000), span(1, 2_001, 2_001)]);
        assert_eq!(spans(&[], 1_000), []);
    }

    #[test]
    fn the_databases_time_goes_on_while_a_run_lasts() {
        let minute = Duration::from_secs(60);
        let at = Instant::now().checked_sub(minute).unwrap();
        let clock = Clock { told: OffsetDateTime::UNIX_EPOCH, at };
        assert!(clock.now() >= OffsetDateTime::UNIX_EPOCH + minute);
    }

    #[test]
    fn the_same_seed_takes_the_same_sample_of_about_that_size() {
        let take = |sample: Sample, seed| {
            sample.places(Seq(1), Seq(100_000), &mut rand::rngs::StdRng::seed_from_u64(seed))
        };
        let count = take(Sample::Messages(1_000), 1);
        assert!((900..=1_000).contains(&count.len()), "{}", count.len());
        assert_eq!(count, take(Sample::Messages(1_000), 1));
        assert_ne!(count, take(Sample::Messages(1_000), 2));
        let fraction = take(Sample::Fraction(0.01), 1);
        assert!((800..=1_200).contains(&fraction.len()), "{}", fraction.len());
        assert!(fraction.is_sorted());
    }
}
