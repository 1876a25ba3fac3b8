//! Where messages landed, as whoever proves or explains a delivery asks for it. No part of the loop.

use std::future::Future;
use std::ops::RangeInclusive;

use outboxd_core::{ReceiptEntry, Seq};
use time::OffsetDateTime;

use crate::outbox::OutboxError;

/// A message's place in Kafka, and who put it there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Landing {
    /// The message and its place.
    pub entry: ReceiptEntry,
    /// The receipt row: one a page.
    pub receipt: i64,
    /// The replay that published this copy; `None`: it is the message itself.
    pub replay: Option<i64>,
    /// The term in which it was settled.
    pub epoch: i64,
    /// The relay that settled it.
    pub relay: Option<String>,
    /// When it was settled, by the database's clock.
    pub settled_at: OffsetDateTime,
}

/// What is known of messages' places in Kafka. The reader's rights are enough.
pub trait Receipts: Send + Sync {
    /// Where these messages, ascending, landed, ascending by `seq`; of one message, itself first and then its replays in the order
    /// in which they were settled. A message that was not dispatched has none.
    ///
    /// Reads only receipts that can hold these places, and all of them: ask for some thousand places at a time.
    ///
    /// # Errors
    /// [`OutboxError`].
    fn landings(&self, seqs: &[Seq]) -> impl Future<Output = Result<Vec<Landing>, OutboxError>> + Send;
}

/// Places that are nearer to one another than this are looked up together: they are likely to have one receipt.
const TOGETHER: i64 = 500;

/// Spans that are asked for in one statement: a receipt row is some kilobytes, and each may find another one.
pub const SPANS_MAX: usize = 250;

/// The spans that hold these places, ascending.
#[must_use]
pub fn spans(seqs: &[Seq]) -> Vec<RangeInclusive<Seq>> {
    let runs = seqs.chunk_by(|one, next| next.0.saturating_sub(one.0) <= TOGETHER);
    runs.filter_map(|run| Some(*run.first()?..=*run.last()?)).collect()
}

/// A row of receipts as an adapter read it, unpacked.
#[derive(Clone, Debug)]
pub struct ReceiptRow {
    /// Its number.
    pub receipt: i64,
    /// The replay that it belongs to.
    pub replay: Option<i64>,
    /// The term.
    pub epoch: i64,
    /// The relay.
    pub relay: Option<String>,
    /// When it was settled.
    pub settled_at: OffsetDateTime,
    /// The entries.
    pub entries: Vec<ReceiptEntry>,
}

impl Landing {
    /// The places of these messages, ascending, in rows that occur once each, in the order of [`Receipts::landings`].
    #[must_use]
    pub fn of_rows(rows: Vec<ReceiptRow>, seqs: &[Seq]) -> Vec<Self> {
        let mut numbered: Vec<(i64, Self)> = Vec::new();
        for row in rows {
            let within = row.entries.into_iter().filter(|entry| seqs.binary_search(&entry.seq).is_ok());
            numbered.extend(within.map(|entry| {
                let landing = Self {
                    entry,
                    receipt: row.receipt,
                    replay: row.replay,
                    epoch: row.epoch,
                    relay: row.relay.clone(),
                    settled_at: row.settled_at,
                };
                (row.receipt, landing)
            }));
        }
        numbered.sort_by_key(|(receipt, landing)| (landing.entry.seq, landing.replay.is_some(), *receipt));
        numbered.into_iter().map(|(_, landing)| landing).collect()
    }
}
