//! The loop of a consumer: each message takes effect once, and a failure is never acknowledged.
//!
//! For each record, in this order: begin, claim, handle, commit, and only then tell Kafka. Whatever fails in between rolls back, so
//! the claim goes too, and the record stays unacknowledged. Its partition then waits, from this record on, and the record is tried
//! again with back-off for as long as it takes; other partitions go on. Nothing is skipped: what a handler cannot digest stays in
//! view, as a failure that is reported again and again and as consumer lag, until somebody puts it right.
//!
//! The consumer needs `enable.auto.commit=false`.

use std::collections::HashMap;
use std::convert::Infallible;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use outbox_client::postgres::Inbox;
use outbox_client::{Claim, Delivery, Place};
use rdkafka::consumer::{CommitMode, Consumer, StreamConsumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::{Offset, TopicPartitionList};
use sqlx::{PgConnection, PgPool};
use tokio::time::Instant;

const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(30);
const SEEK: Duration = Duration::from_secs(2);

/// A record that was not handled, for the log and for an alert: this is where an incident is seen first.
#[derive(Debug)]
pub(crate) struct Failure {
    /// Where the record is; its partition waits there.
    pub(crate) place: Place,
    /// Its message id and context; none if it has no id.
    pub(crate) delivery: Option<Delivery>,
    /// How often it was tried.
    pub(crate) attempts: u32,
    /// When it is tried again.
    pub(crate) again_in: Duration,
    /// Why.
    pub(crate) error: anyhow::Error,
}

/// A partition that stopped at a failure.
#[derive(Debug)]
struct Stopped {
    offset: i64,
    attempts: u32,
    /// When its record is tried again; none once it was asked for.
    again_at: Option<Instant>,
}

type Partition = (String, i32);

/// Handles what the consumer receives until Kafka's client gives up. Cancel safe: what was begun rolls back or comes again.
///
/// `handle` works in the transaction that it is given. Intents that it emits there are correlated with the message.
pub(crate) async fn consume(
    consumer: &StreamConsumer,
    pool: &PgPool,
    inbox: &Inbox,
    handle: impl AsyncFn(&mut PgConnection, &BorrowedMessage<'_>) -> Result<()>,
    report: impl Fn(&Failure),
) -> Result<Infallible> {
    let mut stopped: HashMap<Partition, Stopped> = HashMap::new();
    loop {
        let next_due = stopped.values().filter_map(|stopped| stopped.again_at).min();
        let received = tokio::select! {
            received = consumer.recv() => received,
            // With nothing due this branch is off.
            () = tokio::time::sleep_until(next_due.unwrap_or_else(Instant::now)), if next_due.is_some() => {
                resume_due(consumer, &mut stopped);
                continue;
            }
        };
        let record = match received {
            Ok(record) => record,
            Err(error) if is_passing(&error) => continue,
            Err(error) => return Err(error).context("receive a record"),
        };
        let partition = (record.topic().to_owned(), record.partition());
        let at_fault = stopped.get(&partition).map(|stopped| stopped.offset);
        let delivery = delivery_of(&record);
        let handled = match at_fault {
            // Acknowledging this one would acknowledge the failure before it.
            Some(offset) if record.offset() > offset => {
                Err(anyhow!("Kafka went on at offset {}: is the record gone?", record.offset()))
            }
            _ => match &delivery {
                Ok(delivery) => handle_once(pool, inbox, delivery, &record, &handle).await,
                Err(error) => Err(anyhow!("{error}")),
            },
        };
        match handled {
            Ok(()) => {
                stopped.remove(&partition);
                consumer.commit_message(&record, CommitMode::Async).context("acknowledge a record")?;
            }
            Err(error) => {
                let offset = at_fault.unwrap_or_else(|| record.offset()).min(record.offset());
                let attempts =
                    stopped.get(&partition).map_or(0, |stopped| stopped.attempts).saturating_add(1);
                let again_in = backoff(attempts);
                let place = Place { topic: partition.0.clone(), partition: partition.1, offset };
                stop_at(consumer, &place)?;
                report(&Failure { place, delivery: delivery.ok(), attempts, again_in, error });
                let again_at = Some(Instant::now() + again_in);
                stopped.insert(partition, Stopped { offset, attempts, again_at });
            }
        }
    }
}

/// One transaction: the claim and what the message asks for, or neither.
async fn handle_once(
    pool: &PgPool,
    inbox: &Inbox,
    delivery: &Delivery,
    record: &BorrowedMessage<'_>,
    handle: &impl AsyncFn(&mut PgConnection, &BorrowedMessage<'_>) -> Result<()>,
) -> Result<()> {
    let mut transaction = pool.begin().await.context("begin")?;
    if inbox.claim(&mut transaction, delivery).await? == Claim::Fresh {
        delivery.scope(handle(&mut transaction, record)).await?;
    }
    transaction.commit().await.context("commit")
}

fn delivery_of(record: &BorrowedMessage<'_>) -> Result<Delivery, outbox_client::NoId> {
    let headers = record.headers().into_iter().flat_map(|headers| headers.iter());
    let delivery = Delivery::from_headers(headers.map(|header| (header.key, header.value)))?;
    Ok(delivery.at(record.topic(), record.partition(), record.offset()))
}

/// Nothing of this partition is received until it is resumed, and then this record first.
fn stop_at(consumer: &StreamConsumer, place: &Place) -> Result<()> {
    let mut partition = TopicPartitionList::new();
    partition.add_partition(&place.topic, place.partition);
    consumer.pause(&partition).context("pause a partition")?;
    match consumer.seek(&place.topic, place.partition, Offset::Offset(place.offset), SEEK) {
        // Another consumer of the group has the partition now, and begins where nothing is acknowledged, which is here. Or it took
        // too long: then Kafka goes on behind the failure, which is seen, and this is done again.
        Err(KafkaError::Seek(_)) | Ok(()) => Ok(()),
        Err(error) => Err(error).context("go back to a record"),
    }
}

fn resume_due(consumer: &StreamConsumer, stopped: &mut HashMap<Partition, Stopped>) {
    let now = Instant::now();
    for ((topic, number), stopped) in stopped {
        if stopped.again_at.is_some_and(|at| at <= now) {
            stopped.again_at = None;
            let mut partition = TopicPartitionList::new();
            partition.add_partition(topic, *number);
            // It fails for a partition that another consumer of the group has now, and then there is nothing to resume.
            let _not_ours = consumer.resume(&partition);
        }
    }
}

/// 100 ms, doubled with each attempt, at most 30 s.
fn backoff(attempts: u32) -> Duration {
    BACKOFF_MIN
        .saturating_mul(1_u32.checked_shl(attempts.saturating_sub(1)).unwrap_or(u32::MAX))
        .min(BACKOFF_MAX)
}

/// The client goes on by itself after everything but a fatal error: brokers that are down, a topic that is not there yet.
fn is_passing(error: &KafkaError) -> bool {
    error.rdkafka_error_code() != Some(RDKafkaErrorCode::Fatal)
}
