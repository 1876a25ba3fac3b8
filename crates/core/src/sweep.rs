//! Comparing messages that the cursor has passed with what is known of them.
//!
//! An adapter reads a run of messages and, in the same snapshot, everything that may speak of one of them; each list with a limit, so
//! that a turn is bounded whatever lies between two messages. This module says how far the answer reaches and of which messages
//! nothing is known. Whether the cursor had passed *them* is the adapter's to say: it knows snapshots.

use crate::message::Seq;
use crate::receipts::{DecodeError, RUN_SPAN, decode};

/// Packed receipts and the first place that they speak of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// First place.
    pub first: Seq,
    /// The packed form.
    pub packed: Vec<u8>,
}

/// A run of messages, and what may speak of them.
#[derive(Clone, Debug, Default)]
pub struct Evidence {
    /// The messages, ascending; at most `rows`.
    pub messages: Vec<Seq>,
    /// Receipts in order, which do not overlap: the run that begins at or before the first message, and at most `rows` of those that
    /// begin behind it, ascending.
    pub in_order: Vec<Run>,
    /// Receipts out of order that begin less than [`RUN_SPAN`] places before the first message, ascending; at most [`Evidence::out_of_order_max`].
    pub out_of_order: Vec<Run>,
    /// Receipts of runs that are wider than that, all that overlap the messages.
    pub wide: Vec<Vec<u8>>,
    /// Messages that are held or wait for their time.
    pub set_aside: Vec<Seq>,
}

/// How far the evidence reaches, and what it does not account for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compared {
    /// How many messages were compared.
    pub messages: u64,
    /// The last of them.
    pub upto: Seq,
    /// Those of which nothing is known, ascending.
    pub unknown: Vec<Seq>,
    /// There is no message behind them.
    pub is_last: bool,
}

impl Evidence {
    /// How many runs out of order are read for so many messages: whatever lies before the first message, there is room for one more.
    #[must_use]
    pub fn out_of_order_max(rows: i64) -> i64 {
        rows + RUN_SPAN
    }

    /// Compares. `rows`: the limit that the evidence was read with.
    ///
    /// # Errors
    /// [`DecodeError`] if receipts are damaged.
    pub fn compare(self, rows: i64) -> Result<Compared, DecodeError> {
        let len = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        let mut messages = self.messages;
        let mut is_last = len(messages.len()) < rows;
        // A list that is full may go on: nothing from its last run on can be compared.
        for (runs, full) in [(&self.in_order, rows), (&self.out_of_order, Self::out_of_order_max(rows))] {
            if len(runs.len()) >= full
                && let Some(last) = runs.last()
            {
                let keep = messages.partition_point(|seq| *seq < last.first).max(1).min(messages.len());
                is_last &= keep == messages.len();
                messages.truncate(keep);
            }
        }
        let mut known = self.set_aside;
        let runs = self.in_order.into_iter().chain(self.out_of_order).map(|run| run.packed);
        for packed in runs.chain(self.wide) {
            known.extend(decode(&packed)?.into_iter().map(|entry| entry.seq));
        }
        known.sort_unstable();
        let unknown = messages.iter().copied().filter(|seq| known.binary_search(seq).is_err()).collect();
        Ok(Compared {
            messages: messages.len() as u64,
            upto: messages.last().copied().unwrap_or_default(),
            unknown,
            is_last,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::receipts::{Receipt, ReceiptEntry, encode};

    fn seqs(seqs: &[i64]) -> Vec<Seq> {
        seqs.iter().copied().map(Seq).collect()
    }

    fn run(seqs: &[i64]) -> Run {
        let mut entries: Vec<_> = seqs
            .iter()
            .map(|seq| ReceiptEntry {
                seq: Seq(*seq),
                topic: "orders".into(),
                receipt: Receipt { partition: 0, offset: *seq },
                acknowledged_ms_before: 0,
            })
            .collect();
        Run { packed: encode(&mut entries), first: Seq(seqs[0]) }
    }

    #[test]
    fn what_has_a_receipt_of_any_kind_or_is_set_aside_is_known() {
        let evidence = Evidence {
            messages: seqs(&[5, 6, 7, 8, 9, 10]),
            in_order: vec![run(&[1, 5]), run(&[6])],
            out_of_order: vec![run(&[3, 7])],
            wide: vec![run(&[2, 8, 90_000]).packed],
            set_aside: seqs(&[9]),
        };
        let compared = evidence.compare(100).unwrap();
        assert_eq!(compared, Compared { messages: 6, upto: Seq(10), unknown: seqs(&[10]), is_last: true });
    }

    #[test]
    fn receipts_that_may_go_on_end_the_comparison_before_the_last_of_them() {
        let evidence = Evidence {
            messages: seqs(&[1, 2, 50]),
            in_order: vec![run(&[1]), run(&[2]), run(&[3])],
            ..Evidence::default()
        };
        let compared = evidence.clone().compare(3).unwrap();
        assert_eq!(compared, Compared { messages: 2, upto: Seq(2), unknown: vec![], is_last: false });
        let compared = evidence.compare(4).unwrap();
        assert_eq!((compared.unknown, compared.is_last), (seqs(&[50]), true));
    }

    #[test]
    fn every_turn_gets_on() {
        let evidence = Evidence { messages: seqs(&[7]), in_order: vec![run(&[7])], ..Evidence::default() };
        let compared = evidence.compare(1).unwrap();
        assert_eq!(compared, Compared { messages: 1, upto: Seq(7), unknown: vec![], is_last: false });
        let nothing = Evidence::default().compare(10).unwrap();
        assert_eq!(nothing, Compared { messages: 0, upto: Seq(0), unknown: vec![], is_last: true });
    }

    #[test]
    fn damaged_receipts_accuse_nobody() {
        let evidence = Evidence {
            messages: seqs(&[1]),
            in_order: vec![Run { first: Seq(1), packed: vec![9] }],
            ..Evidence::default()
        };
        assert_eq!(evidence.compare(10), Err(DecodeError::Format(9)));
    }
}
