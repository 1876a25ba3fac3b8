//! Where messages landed, packed into a few bytes a message.
//!
//! Format 1: a version byte; the number of topics and each topic's length and name; the number of entries; then for each
//! entry, ascending by `seq`: the difference to the previous `seq`, the topic's index, the partition, the difference to the
//! previous offset of that topic and partition, and how many milliseconds before the settle the broker acknowledged it.
//! Integers are LEB128 varints, the offset difference zigzag-encoded first.

use std::collections::HashMap;

use crate::message::Seq;

/// Where the broker put a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// Partition.
    pub partition: i32,
    /// Offset.
    pub offset: i64,
}

/// A message and where it landed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceiptEntry {
    /// The message.
    pub seq: Seq,
    /// The topic it landed in.
    pub topic: String,
    /// Partition and offset.
    pub receipt: Receipt,
    /// How long before the settle the broker acknowledged it, in milliseconds.
    pub acknowledged_ms_before: u32,
}

/// The packed form cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// It ends too early or holds an impossible number.
    #[error("receipts are cut short or damaged")]
    Damaged,
    /// Written by a later version.
    #[error("receipts have format {0}, this version reads format 1")]
    Format(u8),
}

const FORMAT: u8 = 1;

/// Receipts out of order are stored in runs whose places lie within so many: whoever looks for a place then knows how far before it
/// a run that holds it may begin.
pub const RUN_SPAN: i64 = 4_096;

/// Cuts receipts, ascending by `seq`, into runs of less than [`RUN_SPAN`] places from the first to the last.
#[must_use]
pub fn runs(entries: Vec<ReceiptEntry>) -> Vec<Vec<ReceiptEntry>> {
    let mut runs: Vec<Vec<ReceiptEntry>> = Vec::new();
    for entry in entries {
        match runs.last_mut() {
            Some(run) if run.first().is_some_and(|first| entry.seq.0 - first.seq.0 < RUN_SPAN) => {
                run.push(entry);
            }
            Some(_) | None => runs.push(vec![entry]),
        }
    }
    runs
}

/// Packs receipts. Entries are sorted by `seq` first; a `seq` occurs once.
#[must_use]
pub fn encode(entries: &mut [ReceiptEntry]) -> Vec<u8> {
    entries.sort_unstable_by_key(|entry| entry.seq);
    let mut topics: Vec<&str> = Vec::new();
    let mut index_of: HashMap<&str, u64> = HashMap::new();
    for entry in entries.iter() {
        index_of.entry(&entry.topic).or_insert_with(|| {
            topics.push(&entry.topic);
            topics.len() as u64 - 1
        });
    }
    let mut out = Vec::with_capacity(16 + entries.len() * 6);
    out.push(FORMAT);
    put(&mut out, topics.len() as u64);
    for topic in &topics {
        put(&mut out, topic.len() as u64);
        out.extend_from_slice(topic.as_bytes());
    }
    put(&mut out, entries.len() as u64);
    let mut previous_seq = 0_i64;
    let mut previous_offset: HashMap<(u64, i32), i64> = HashMap::new();
    for entry in entries.iter() {
        let topic = index_of[entry.topic.as_str()];
        put(&mut out, zigzag(entry.seq.0.wrapping_sub(previous_seq)));
        previous_seq = entry.seq.0;
        put(&mut out, topic);
        put(&mut out, u64::from(entry.receipt.partition.unsigned_abs()));
        let offset = previous_offset.entry((topic, entry.receipt.partition)).or_insert(0);
        put(&mut out, zigzag(entry.receipt.offset.wrapping_sub(*offset)));
        *offset = entry.receipt.offset;
        put(&mut out, u64::from(entry.acknowledged_ms_before));
    }
    out
}

/// Unpacks receipts, ascending by `seq`.
///
/// # Errors
/// [`DecodeError`] if the bytes were not written by [`encode`]; never panics and never allocates more than the input
/// can hold.
pub fn decode(bytes: &[u8]) -> Result<Vec<ReceiptEntry>, DecodeError> {
    let mut input = bytes;
    let format = take_bytes(&mut input, 1)?[0];
    if format != FORMAT {
        return Err(DecodeError::Format(format));
    }
    let topics_count = take_len(&mut input)?;
    let mut topics = Vec::with_capacity(topics_count);
    for _ in 0..topics_count {
        let len = take_len(&mut input)?;
        let name = std::str::from_utf8(take_bytes(&mut input, len)?).map_err(|_| DecodeError::Damaged)?;
        topics.push(name.to_owned());
    }
    let entries_count = take_len(&mut input)?;
    let mut entries = Vec::with_capacity(entries_count);
    let mut previous_seq = 0_i64;
    let mut previous_offset: HashMap<(usize, i32), i64> = HashMap::new();
    for _ in 0..entries_count {
        let seq = previous_seq.wrapping_add(unzigzag(take(&mut input)?));
        previous_seq = seq;
        let index = usize::try_from(take(&mut input)?).map_err(|_| DecodeError::Damaged)?;
        let topic = topics.get(index).ok_or(DecodeError::Damaged)?.clone();
        let partition = i32::try_from(take(&mut input)?).map_err(|_| DecodeError::Damaged)?;
        let offset = previous_offset.entry((index, partition)).or_insert(0);
        *offset = offset.wrapping_add(unzigzag(take(&mut input)?));
        let receipt = Receipt { partition, offset: *offset };
        let acknowledged_ms_before = u32::try_from(take(&mut input)?).map_err(|_| DecodeError::Damaged)?;
        entries.push(ReceiptEntry { seq: Seq(seq), topic, receipt, acknowledged_ms_before });
    }
    if input.is_empty() { Ok(entries) } else { Err(DecodeError::Damaged) }
}

fn zigzag(value: i64) -> u64 {
    u64::from_ne_bytes(((value << 1) ^ (value >> 63)).to_ne_bytes())
}

fn unzigzag(value: u64) -> i64 {
    i64::from_ne_bytes(((value >> 1) ^ (value & 1).wrapping_neg()).to_ne_bytes())
}

fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}

fn take(input: &mut &[u8]) -> Result<u64, DecodeError> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let byte = take_bytes(input, 1)?[0];
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err(DecodeError::Damaged)
}

/// A count of things that take at least a byte each: never more than there are bytes left.
fn take_len(input: &mut &[u8]) -> Result<usize, DecodeError> {
    let len = usize::try_from(take(input)?).map_err(|_| DecodeError::Damaged)?;
    if len > input.len() { Err(DecodeError::Damaged) } else { Ok(len) }
}

fn take_bytes<'a>(input: &mut &'a [u8], len: usize) -> Result<&'a [u8], DecodeError> {
    let (taken, rest) = input.split_at_checked(len).ok_or(DecodeError::Damaged)?;
    *input = rest;
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

    use super::*;

    proptest! {
        #[test]
        fn what_was_packed_comes_back(
            raw in proptest::collection::btree_map(any::<i64>(), (0..4_usize, 0..i32::MAX, 0..i64::MAX, any::<u32>()), 0..50)
        ) {
            let mut entries: Vec<_> = raw.into_iter().map(|(seq, (topic, partition, offset, before))| ReceiptEntry {
                seq: Seq(seq),
                topic: format!("topic-{topic}"),
                receipt: Receipt { partition, offset },
                acknowledged_ms_before: before,
            }).collect();
            let packed = encode(&mut entries);
            prop_assert_eq!(decode(&packed).unwrap(), entries);
        }

        #[test]
        fn damaged_bytes_are_an_error_and_never_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(decode(&bytes).is_ok() || decode(&bytes).is_err());
        }
    }

    #[test]
    fn runs_hold_every_receipt_in_order_and_none_is_wider_than_its_span() {
        let entry = |seq| ReceiptEntry {
            seq: Seq(seq),
            topic: "orders".into(),
            receipt: Receipt { partition: 0, offset: seq },
            acknowledged_ms_before: 0,
        };
        let entries: Vec<_> =
            [1, 2, RUN_SPAN, RUN_SPAN + 1, RUN_SPAN + 2, 9 * RUN_SPAN].into_iter().map(entry).collect();
        let runs = runs(entries.clone());
        assert_eq!(runs.iter().map(Vec::len).collect::<Vec<_>>(), [3, 2, 1]);
        assert_eq!(runs.concat(), entries);
        assert!(super::runs(Vec::new()).is_empty());
    }

    #[test]
    fn a_dense_page_takes_a_few_bytes_a_message() {
        let mut entries: Vec<_> = (0..1_000)
            .map(|nth| ReceiptEntry {
                seq: Seq(1_000_000 + nth),
                topic: "orders".into(),
                receipt: Receipt { partition: i32::try_from(nth % 12).unwrap(), offset: 5_000 + nth / 12 },
                acknowledged_ms_before: 12,
            })
            .collect();
        let packed = encode(&mut entries);
        assert!(packed.len() < 6 * entries.len(), "{} bytes for {}", packed.len(), entries.len());
    }
}
