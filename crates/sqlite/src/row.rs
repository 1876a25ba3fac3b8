//! From a row to a message.
//!
//! The trigger on inserts has looked at every intent, so what cannot be read here got round it. SQLite itself does not check
//! that text is UTF-8, though, and JSON may hold half a surrogate pair: such text is mended with U+FFFD, the same way every
//! time, because one odd intent must not stop all others.

use std::time::Duration;

use bytes::Bytes;
use outboxd_core::{Message, Seq};
use outboxd_engine::OutboxError;
use serde_json::{Map, Value};
use sqlx::Row;
use sqlx::sqlite::SqliteRow;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use crate::session::Failure;

/// Reads a message from a row with the columns of `page.sql`.
pub(crate) fn message(row: &SqliteRow) -> Result<Message, Failure> {
    let seq = Seq(row.try_get("seq")?);
    let age_seconds: f64 = row.try_get("age_seconds")?;
    Ok(Message {
        seq,
        id: id(row.try_get("id")?).ok_or_else(|| damaged(row, seq, "an id that is no UUID"))?,
        topic: text(row, "topic")?.unwrap_or_default(),
        key: text(row, "key")?,
        payload: row.try_get::<Option<&[u8]>, _>("payload")?.map(Bytes::copy_from_slice),
        headers: headers(text(row, "headers")?)
            .ok_or_else(|| damaged(row, seq, "headers that are not an object of strings"))?,
        partition: row.try_get("partition")?,
        content_type: text(row, "content_type")?,
        correlation_id: text(row, "correlation_id")?.unwrap_or_default(),
        causation_id: text(row, "causation_id")?,
        traceparent: text(row, "traceparent")?,
        tracestate: text(row, "tracestate")?,
        created_at: timestamp(row, "created_at")?
            .ok_or_else(|| damaged(row, seq, "a created_at that is no time"))?,
        deliver_after: timestamp(row, "deliver_after")?,
        age: Duration::try_from_secs_f64(age_seconds).unwrap_or(Duration::ZERO),
    })
}

/// A UUID as text or as 16 bytes.
pub(crate) fn id(stored: &[u8]) -> Option<Uuid> {
    match stored.len() {
        16 => Uuid::from_slice(stored).ok(),
        _ => Uuid::try_parse_ascii(stored).ok(),
    }
}

/// A time as our tables store it.
pub(crate) fn timestamp(row: &SqliteRow, column: &str) -> Result<Option<OffsetDateTime>, sqlx::Error> {
    let text: Option<String> = row.try_get(column)?;
    text.map(|text| OffsetDateTime::parse(&text, &Rfc3339))
        .transpose()
        .map_err(|error| sqlx::Error::ColumnDecode { index: column.to_owned(), source: Box::new(error) })
}

pub(crate) fn text(row: &SqliteRow, column: &str) -> Result<Option<String>, sqlx::Error> {
    let bytes: Option<&[u8]> = row.try_get(column)?;
    Ok(bytes.map(|bytes| String::from_utf8_lossy(bytes).into_owned()))
}

pub(crate) fn headers(stored: Option<String>) -> Option<Vec<(String, String)>> {
    let Some(json) = stored else { return Some(Vec::new()) };
    let object: Map<String, Value> =
        serde_json::from_str(&json).or_else(|_| serde_json::from_str(&mend_surrogates(&json))).ok()?;
    object
        .into_iter()
        .map(|(name, value)| match value {
            Value::String(value) => Some((name, value)),
            _ => None,
        })
        .collect()
}

/// Replaces the escape of half a surrogate pair, which SQLite takes for JSON and Unicode does not take at all.
fn mend_surrogates(json: &str) -> String {
    let mut mended = String::with_capacity(json.len());
    let mut rest = json;
    while let Some(at) = rest.find('\\') {
        mended.push_str(&rest[..at]);
        rest = &rest[at..];
        let (escape, len) = match (surrogate(rest), rest.get(6..).and_then(surrogate)) {
            (Some(0xd800..=0xdbff), Some(0xdc00..=0xdfff)) => (&rest[..12], 12),
            (Some(_), _) => ("\\ufffd", 6),
            (None, _) => {
                // A backslash and the character that it escapes, which may be another backslash.
                let len = rest.chars().take(2).map(char::len_utf8).sum();
                (&rest[..len], len)
            }
        };
        mended.push_str(escape);
        rest = &rest[len..];
    }
    mended.push_str(rest);
    mended
}

/// The surrogate that the text begins with, escaped.
fn surrogate(text: &str) -> Option<u16> {
    let digits = text.strip_prefix("\\u")?.get(..4)?;
    u16::from_str_radix(digits, 16).ok().filter(|unit| (0xd800..=0xdfff).contains(unit))
}

fn damaged(row: &SqliteRow, seq: Seq, what: &str) -> Failure {
    let named = |column| text(row, column).ok().flatten().unwrap_or_else(|| "none".to_owned());
    let (id, correlation_id) = (named("id"), named("correlation_id"));
    OutboxError::Refused {
        finding: format!("the intent with seq {seq}, id {id} and correlation id {correlation_id} has {what}"),
        remedy: "find out who dropped the triggers of outbox_message, restore them, and mend the row"
            .to_owned(),
    }
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Option<Vec<(String, String)>> {
        headers(Some(json.to_owned()))
    }

    fn pair(name: &str, value: &str) -> (String, String) {
        (name.to_owned(), value.to_owned())
    }

    #[test]
    fn headers_keep_their_order() {
        assert_eq!(read(r#"{"z":"1","a":"2"}"#), Some(vec![pair("z", "1"), pair("a", "2")]));
        assert_eq!(headers(None), Some(Vec::new()));
    }

    #[test]
    fn a_surrogate_pair_is_a_character_and_half_of_one_is_mended() {
        assert_eq!(read(r#"{"a":"\ud83d\ude00"}"#), Some(vec![pair("a", "\u{1f600}")]));
        assert_eq!(read(r#"{"a":"x\ud83dy"}"#), Some(vec![pair("a", "x\u{fffd}y")]));
        assert_eq!(read(r#"{"a":"\\ud83d\ude00\ud83d"}"#), Some(vec![pair("a", "\\ud83d\u{fffd}\u{fffd}")]));
        assert_eq!(read(r#"{"\udc00":"ä\n"}"#), Some(vec![pair("\u{fffd}", "ä\n")]));
    }

    #[test]
    fn headers_that_are_no_object_of_strings_are_not_guessed_at() {
        assert_eq!(read(r#"{"a":1}"#), None);
        assert_eq!(read("[]"), None);
        assert_eq!(read("{"), None);
    }
}
