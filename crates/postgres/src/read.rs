//! Reading pages.
//!
//! The statement answers with one row about the page as a whole, then its messages; everything is judged here before
//! any of it is believed.

use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use outboxd_core::{Cursor, Message, Page, Seq, Snapshot};
use outboxd_engine::{DurabilityMark, OutboxError, PageLimit, ReadPage};
use sqlx::Row;
use sqlx::postgres::PgRow;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::lead::foreign;
use crate::outbox::PostgresOutbox;
use crate::session::{CallError, Incarnation};

/// Without a known bound, every transaction may have written late messages.
const UNBOUNDED: u64 = u64::MAX;

impl PostgresOutbox {
    pub(crate) async fn read_page(&self, from: &Cursor, limit: PageLimit) -> Result<ReadPage, OutboxError> {
        let bound = self.memory().bounds.of(from.high).unwrap_or(UNBOUNDED);
        let mut call = self.read_session.call_if_open("read page").await?;
        let catch_up = from.catch_up.as_ref();
        let statement = sqlx::query(self.sql.read_page.clone())
            .bind(from.seen.as_str())
            .bind(from.high.0)
            .bind(catch_up.map_or(i64::MIN, |catch_up| catch_up.pos.0))
            .bind(catch_up.map(|catch_up| catch_up.until.as_str()))
            .bind(bound.to_string())
            .bind(i64::from(limit.messages.max(1)))
            .bind(i64::try_from(limit.bytes.max(1)).unwrap_or(i64::MAX));
        let rows = call.rows(statement).await?;
        let Some((first, rest)) = rows.split_first() else {
            return Err(call.failed(CallError::Client("a page without its frame".into())));
        };
        let frame = call.value(first.try_get::<Vec<String>, _>("page"))?;
        let Some(frame) = Frame::parse(&frame) else {
            return Err(call.failed(CallError::Client("a page with a damaged frame".into())));
        };
        self.same_incarnation(frame.incarnation, "read page")?;
        if frame.is_foreign {
            return Err(foreign());
        }
        let mut messages = Vec::with_capacity(rest.len());
        for row in rest {
            messages.push(call.value(message(row, 1, frame.clock))?);
        }
        call.done();
        if !messages.is_sorted_by_key(|message| message.seq) {
            messages.sort_unstable_by_key(|message| message.seq);
        }
        let full = messages.len() >= usize::try_from(limit.messages).unwrap_or(usize::MAX);
        let page = Page {
            from: from.clone(),
            snapshot: frame.snapshot,
            late: frame.late,
            late_complete: frame.late_complete,
            messages,
        };
        let after = page.cursor_after();
        self.memory().bounds.learn(after.high, frame.next_xid);
        let more = full || frame.cut || !page.late_complete || from.catch_up.is_some();
        Ok(ReadPage { page, mark: Some(frame.mark), more })
    }
}

/// What a page says about itself.
#[derive(Debug)]
struct Frame {
    snapshot: Snapshot,
    next_xid: u64,
    mark: DurabilityMark,
    incarnation: Incarnation,
    clock: OffsetDateTime,
    late: usize,
    late_complete: bool,
    /// The rest was cut by bytes.
    cut: bool,
    /// A message was written in another cluster.
    is_foreign: bool,
}

impl Frame {
    fn parse(words: &[String]) -> Option<Self> {
        fn number<T: FromStr>(word: &str) -> Option<T> {
            word.parse().ok()
        }
        let [snapshot, next_xid, mark, started_us, clock_us, late, late_complete, cut, is_foreign] = words
        else {
            return None;
        };
        Some(Self {
            snapshot: Snapshot::new(snapshot),
            next_xid: number(next_xid)?,
            mark: DurabilityMark(number(mark)?),
            incarnation: Incarnation { started_us: number(started_us)? },
            clock: clock(number(clock_us)?)?,
            late: number(late)?,
            late_complete: number(late_complete)?,
            cut: number(cut)?,
            is_foreign: number(is_foreign)?,
        })
    }
}

/// The database's clock from microseconds since 1970.
pub(crate) fn clock(us: i64) -> Option<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(us) * 1_000).ok()
}

/// A message from a row whose columns start at `first`: `seq, id, topic, key, payload, headers, partition, content_type,
/// correlation_id, causation_id, traceparent, tracestate, created_at, deliver_after`.
pub(crate) fn message(row: &PgRow, first: usize, clock: OffsetDateTime) -> Result<Message, sqlx::Error> {
    decoded(row, first, clock).map_err(|cause| {
        let (id, correlation_id) = (row.try_get(first + 1).ok(), row.try_get(first + 8).ok());
        sqlx::Error::Decode(Box::new(Unreadable { id, correlation_id, cause }))
    })
}

/// A row that is no message: something got round the table's checks. The cause is in the text, because the driver's error, in which
/// this one travels, tells of it by its text alone.
#[derive(Debug, thiserror::Error)]
#[error("read message {} with correlation id {}: {cause}", .id.unwrap_or_default(), .correlation_id.as_deref().unwrap_or("none"))]
struct Unreadable {
    id: Option<Uuid>,
    correlation_id: Option<String>,
    cause: sqlx::Error,
}

fn decoded(row: &PgRow, first: usize, clock: OffsetDateTime) -> Result<Message, sqlx::Error> {
    let headers: Option<&str> = row.try_get(first + 5)?;
    let created_at: OffsetDateTime = row.try_get(first + 12)?;
    let deliver_after: Option<OffsetDateTime> = row.try_get(first + 13)?;
    Ok(Message {
        seq: Seq(row.try_get(first)?),
        id: row.try_get(first + 1)?,
        topic: row.try_get(first + 2)?,
        key: row.try_get(first + 3)?,
        payload: row.try_get::<Option<Vec<u8>>, _>(first + 4)?.map(Bytes::from),
        headers: headers.map_or(Ok(Vec::new()), header_list)?,
        partition: row.try_get(first + 6)?,
        content_type: row.try_get(first + 7)?,
        correlation_id: row.try_get(first + 8)?,
        causation_id: row.try_get(first + 9)?,
        traceparent: row.try_get(first + 10)?,
        tracestate: row.try_get(first + 11)?,
        created_at,
        deliver_after,
        age: Duration::try_from(clock - deliver_after.map_or(created_at, |after| after.max(created_at)))
            .unwrap_or(Duration::ZERO),
    })
}

/// The headers of a message: an object of strings, as its CHECK sees to.
pub(crate) fn header_list(json: &str) -> Result<Vec<(String, String)>, sqlx::Error> {
    let object: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(json).map_err(|_| sqlx::Error::Protocol("headers are not an object".into()))?;
    object
        .into_iter()
        .map(|(name, value)| match value {
            serde_json::Value::String(value) => Ok((name, value)),
            _ => Err(sqlx::Error::Protocol("a header is not a string".into())),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_keep_the_order_that_the_database_gives_them() {
        let headers = header_list(r#"{"z": "1", "aa": "ü", "ab": ""}"#).unwrap();
        let expected = [("z", "1"), ("aa", "ü"), ("ab", "")];
        assert_eq!(headers, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
        assert!(header_list("[]").is_err() && header_list(r#"{"a": 1}"#).is_err());
    }

    #[test]
    fn a_damaged_frame_is_not_a_page() {
        let good = ["10:12:10", "13", "818597760", "1", "1795468545834649", "0", "true", "false", "false"];
        assert!(Frame::parse(&good.map(str::to_owned)).is_some());
        for at in 1..good.len() {
            let mut damaged = good.map(str::to_owned);
            damaged[at] = "?".into();
            assert!(Frame::parse(&damaged).is_none(), "{at}");
        }
        assert!(Frame::parse(&[]).is_none());
    }
}
