//! Reads records where they are said to be.
//!
//! Aborted and open transactions are read too: what the relay writes is in none, and must be found whatever others do.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use outboxd_core::verify::Absence;
use outboxd_core::{Fault, Receipt};
use rdkafka::consumer::{Consumer as _, StreamConsumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message as _;
use rdkafka::types::RDKafkaErrorCode;
use rdkafka::{Offset, TopicPartitionList};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::{ReadError, ReadRecord, failed, partitions_of, reason, record_of};
use crate::config::KafkaConfig;
use crate::connection::Connection;
use crate::properties::creation_reason;

/// How often a log that loses its beginning while it is read is begun again.
const MOVED_MAX: u32 = 5;

/// What a partition holds now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// The first offset that it still has; what was before is deleted.
    pub start: i64,
    /// The offset that the next record gets. The same as `start`: it is empty.
    pub end: i64,
}

/// A run of offsets of one partition, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Partition.
    pub partition: i32,
    /// First offset.
    pub first: i64,
    /// Last offset.
    pub last: i64,
}

/// What is at a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AtPlace {
    /// This record.
    Record(Box<ReadRecord>),
    /// Nothing.
    Nothing(Absence),
}

impl Bounds {
    /// Why a record that was looked for is not there.
    #[must_use]
    pub fn absence(self, offset: i64) -> Absence {
        if offset >= self.end {
            Absence::BeyondEnd
        } else if offset < self.start {
            Absence::BeforeStart
        } else {
            Absence::Gap
        }
    }

    /// The part of a span that may hold records.
    fn clip(self, span: Span) -> Option<Span> {
        let clipped = Span { first: span.first.max(self.start), last: span.last.min(self.end - 1), ..span };
        (clipped.first <= clipped.last).then_some(clipped)
    }
}

/// Reads records where they are said to be: single ones and runs of offsets.
pub struct PlaceReader {
    consumer: Arc<StreamConsumer<Connection>>,
    look_up_within: Duration,
    /// A broker that says nothing for so long is not waited for.
    silent_after: Duration,
}

impl PlaceReader {
    /// Makes the client. Nothing is asked yet.
    ///
    /// # Errors
    /// [`ReadError::Client`].
    pub async fn new(config: &KafkaConfig) -> Result<Self, ReadError> {
        let look_up_within = config.look_up_within;
        let mut settings = config.reading();
        settings
            .set("isolation.level", "read_uncommitted")
            .set("enable.partition.eof", "true")
            .set("check.crcs", "true")
            .set("fetch.wait.max.ms", "50")
            // A full queue is looked at again after so long; the default of a second would be most of a run's time.
            .set("fetch.queue.backoff.ms", "2")
            .set("queued.max.messages.kbytes", "16384");
        // Off the async threads: it reads its certificates.
        let made = spawn_blocking(move || settings.create_with_context(Connection::silent())).await;
        let made = made.map_err(|error| ReadError::Client(error.to_string()))?;
        let consumer = made.map_err(|error| ReadError::Client(creation_reason(&error)))?;
        Ok(Self { consumer: Arc::new(consumer), look_up_within, silent_after: 4 * look_up_within })
    }

    /// What is at one place.
    ///
    /// # Errors
    /// As [`PlaceReader::read`].
    pub async fn record_at(&self, topic: &str, place: Receipt) -> Result<AtPlace, ReadError> {
        let Receipt { partition, offset } = place;
        let mut found = None;
        let span = Span { partition, first: offset, last: offset };
        let bounds = self.read(topic, &[span], |record| found = Some(Box::new(record))).await?;
        let absence = || bounds.get(&partition).copied().unwrap_or_default().absence(offset);
        Ok(found.map_or_else(|| AtPlace::Nothing(absence()), AtPlace::Record))
    }

    /// Reads every record in these spans of a topic, which do not overlap: those of a partition in their order, the
    /// partitions beside one another. What a record that did not come means is in the bounds that are returned, for each partition
    /// that was asked for.
    ///
    /// # Errors
    /// [`ReadError::Topic`] if it does not exist or may not be read, [`ReadError::Brokers`] if no broker answers.
    pub async fn read(
        &self,
        topic: &str,
        spans: &[Span],
        mut each: impl FnMut(ReadRecord),
    ) -> Result<BTreeMap<i32, Bounds>, ReadError> {
        let mut waiting: BTreeMap<i32, VecDeque<Span>> = BTreeMap::new();
        for span in spans {
            waiting.entry(span.partition).or_default().push_back(*span);
        }
        let mut bounds = self.bounds(topic, waiting.keys().copied().collect()).await?;
        let mut moved = 0;
        loop {
            let mut round: BTreeMap<i32, Span> = BTreeMap::new();
            for (partition, spans) in &mut waiting {
                let bounds = bounds.get(partition).copied().unwrap_or_default();
                let next = std::iter::from_fn(|| spans.pop_front()).find_map(|span| bounds.clip(span));
                round.extend(next.map(|span| (*partition, span)));
            }
            if round.is_empty() {
                return Ok(bounds);
            }
            if self.round(topic, &mut round, &mut each).await? == Round::Moved {
                moved += 1;
                if moved > MOVED_MAX {
                    return Err(ReadError::Read(format!("the log of {topic} keeps moving")));
                }
                for (partition, rest) in round {
                    waiting.entry(partition).or_default().push_front(rest);
                }
                bounds = self.bounds(topic, waiting.keys().copied().collect()).await?;
            }
        }
    }

    /// Reads one span of each partition. What is left of them if the log moved stays in `round`.
    async fn round(
        &self,
        topic: &str,
        round: &mut BTreeMap<i32, Span>,
        each: &mut impl FnMut(ReadRecord),
    ) -> Result<Round, ReadError> {
        let read = |error: KafkaError| ReadError::Read(reason(&error));
        let mut assigned = TopicPartitionList::new();
        for span in round.values() {
            assigned.add_partition_offset(topic, span.partition, Offset::Offset(span.first)).map_err(read)?;
        }
        self.consumer.assign(&assigned).map_err(read)?;
        let ended = self.receive(topic, round, each).await;
        // A pause outlives an assignment; and nothing is fetched that nobody reads.
        self.consumer.resume(&assigned).and_then(|()| self.consumer.unassign()).map_err(read)?;
        ended
    }

    async fn receive(
        &self,
        topic: &str,
        round: &mut BTreeMap<i32, Span>,
        each: &mut impl FnMut(ReadRecord),
    ) -> Result<Round, ReadError> {
        while !round.is_empty() {
            let Ok(received) = timeout(self.silent_after, self.consumer.recv()).await else {
                let last = self.consumer.client().context().last_error();
                let said = last.map_or_else(|| "no answer".to_owned(), |error| error.to_string());
                return Err(ReadError::Brokers(said));
            };
            match received {
                Ok(message) => {
                    let Some(span) = round.get_mut(&message.partition()) else { continue };
                    let offset = message.offset();
                    if offset < span.first {
                        continue;
                    }
                    if offset <= span.last {
                        each(record_of(&message));
                    }
                    span.first = offset.saturating_add(1);
                    if offset >= span.last {
                        round.remove(&message.partition());
                        self.pause(topic, message.partition(), round.is_empty())?;
                    }
                }
                // Nothing comes before the end of the log.
                Err(KafkaError::PartitionEOF(partition)) => {
                    round.remove(&partition);
                }
                Err(error) if error.rdkafka_error_code() == Some(RDKafkaErrorCode::AutoOffsetReset) => {
                    return Ok(Round::Moved);
                }
                Err(error) => return Err(failed(topic, &error)),
            }
        }
        Ok(Round::Done)
    }

    /// What is behind a span is not fetched while others are read.
    fn pause(&self, topic: &str, partition: i32, is_last: bool) -> Result<(), ReadError> {
        if is_last {
            return Ok(());
        }
        let mut read = TopicPartitionList::new();
        read.add_partition(topic, partition);
        self.consumer.pause(&read).map_err(|error| ReadError::Read(reason(&error)))
    }

    /// What these partitions hold; those that do not exist hold nothing.
    async fn bounds(&self, topic: &str, partitions: Vec<i32>) -> Result<BTreeMap<i32, Bounds>, ReadError> {
        let (consumer, topic, within) = (Arc::clone(&self.consumer), topic.to_owned(), self.look_up_within);
        let asked = spawn_blocking(move || {
            let count = partitions_of(&consumer, &topic, within)?;
            let bounds = |partition: i32| {
                if !(0..count).contains(&partition) {
                    return Ok((partition, Bounds::default()));
                }
                match consumer.fetch_watermarks(&topic, partition, within) {
                    Ok((start, end)) => Ok((partition, Bounds { start, end })),
                    Err(error) => Err(failed(&topic, &error)),
                }
            };
            partitions.into_iter().map(bounds).collect()
        });
        asked.await.map_err(|error| ReadError::Client(error.to_string()))?
    }
}

/// How a round ended.
#[derive(PartialEq, Eq)]
enum Round {
    Done,
    /// The partition does not have the next offset any more.
    Moved,
}

impl fmt::Debug for PlaceReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PlaceReader").finish_non_exhaustive()
    }
}

impl ReadError {
    /// The topic does not exist.
    #[must_use]
    pub fn is_topic_unknown(&self) -> bool {
        matches!(self, Self::Topic { fault: Fault::TopicUnknown, .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_absent_is_deleted_beyond_the_end_or_missing_in_between() {
        let bounds = Bounds { start: 10, end: 20 };
        assert_eq!(bounds.absence(9), Absence::BeforeStart);
        assert_eq!(bounds.absence(10), Absence::Gap);
        assert_eq!(bounds.absence(19), Absence::Gap);
        assert_eq!(bounds.absence(20), Absence::BeyondEnd);
        // Made anew and empty, or a partition that does not exist.
        assert_eq!(Bounds::default().absence(5), Absence::BeyondEnd);
    }

    #[test]
    fn a_span_is_read_where_the_partition_has_something() {
        let bounds = Bounds { start: 10, end: 20 };
        let span = |first, last| Span { partition: 0, first, last };
        assert_eq!(bounds.clip(span(5, 12)), Some(span(10, 12)));
        assert_eq!(bounds.clip(span(15, 50)), Some(span(15, 19)));
        assert_eq!(bounds.clip(span(0, 9)), None);
        assert_eq!(bounds.clip(span(20, 30)), None);
    }
}
