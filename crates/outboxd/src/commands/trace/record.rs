//! Which message a record in Kafka is: its header `id` says so.

use anyhow::anyhow;
use outboxd_core::Receipt;
use outboxd_engine::trace::{By, Place, TraceQuery};
use outboxd_kafka::{Absence, AtPlace, KafkaConfig, PlaceReader, ReadError};
use uuid::Uuid;

use crate::failure::Failure;

/// The header with the message id.
const ID: &str = "id";

/// Reads the record at a place, and asks for its message.
pub(super) async fn message_at(kafka: &KafkaConfig, place: Place, limit: u32) -> Result<TraceQuery, Failure> {
    let reader = PlaceReader::new(kafka).await.map_err(unread)?;
    let receipt = Receipt { partition: place.partition, offset: place.offset };
    let record = match reader.record_at(&place.topic, receipt).await.map_err(unread)? {
        AtPlace::Record(record) => record,
        AtPlace::Nothing(absence) => {
            let why = match absence {
                Absence::BeforeStart => "retention or somebody deleted it",
                Absence::BeyondEnd => "the topic has no such record yet",
                Absence::Gap => "compaction removed it, or it was never a record",
            };
            return Err(Failure::usage(anyhow!("there is no record at {place}: {why}")));
        }
    };
    let Some(id) = record.header(ID).and_then(|id| Uuid::try_parse(id).ok()) else {
        return Err(Failure::usage(anyhow!(
            "the record at {place} has no header \"id\" with a message id: it was not published by outboxd"
        )));
    };
    Ok(TraceQuery {
        asked: format!("record {place}, message id {id}"),
        by: vec![By::Ids(vec![id])],
        limit,
        place: Some(place),
    })
}

fn unread(error: ReadError) -> Failure {
    match &error {
        ReadError::Topic { .. } => Failure::usage(error),
        _ => Failure::unavailable(error),
    }
}
