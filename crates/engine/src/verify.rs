//! What a proof of delivery asks of the outbox. No part of the loop; the reader's rights are enough.

use std::future::Future;

use outboxd_core::Seq;
use outboxd_core::verify::Fingerprint;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use crate::outbox::OutboxError;
use crate::receipts::Receipts;

/// By so much may the clock that stamps records differ from the one that stamps terms.
const CLOCKS_DIFFER: Duration = Duration::minutes(1);

/// Which messages are wanted.
#[derive(Clone, Debug)]
pub enum Wanted {
    /// The first `limit` of those above `above` and up to `upto`.
    Next {
        /// Above this place.
        above: Seq,
        /// Up to this place.
        upto: Seq,
        /// At most so many.
        limit: u32,
    },
    /// Those at these places that exist.
    At(Vec<Seq>),
}

/// A term of leadership.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TermSpan {
    /// Its epoch.
    pub epoch: i64,
    /// When it began.
    pub led_at: OffsetDateTime,
    /// When it ended in order; `None`: it goes on, or ended without a word.
    pub ended_at: Option<OffsetDateTime>,
}

/// A relay went back to the settled cursor within its term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rewind {
    /// When.
    pub at: OffsetDateTime,
    /// The first message that may have been published twice.
    pub first: Seq,
    /// The last one.
    pub last: Seq,
}

/// What is known of why messages were published more than once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct History {
    /// The time now, by the database's clock.
    pub now: OffsetDateTime,
    /// Terms, ascending; the newest ten thousand.
    pub terms: Vec<TermSpan>,
    /// Rewinds; the newest ten thousand.
    pub rewinds: Vec<Rewind>,
    /// When the outbox was rebased last.
    pub rebased_at: Option<OffsetDateTime>,
}

impl History {
    /// Why there may be a copy of a message beside the one that its receipt names, in a word; `None`: nothing explains it.
    ///
    /// `published`: the copy's timestamp. `epoch`: the term that settled the message.
    #[must_use]
    pub fn explains(&self, seq: Seq, published: OffsetDateTime, epoch: i64) -> Option<&'static str> {
        let around = |from: OffsetDateTime, to: OffsetDateTime| {
            published >= from - CLOCKS_DIFFER && published <= to + CLOCKS_DIFFER
        };
        let silent = self.terms.windows(2).any(|pair| {
            pair[0].ended_at.is_none() && pair[0].epoch < epoch && around(pair[0].led_at, pair[1].led_at)
        });
        let rewound = self.rewinds.iter().any(|rewind| {
            (rewind.first..=rewind.last).contains(&seq) && published <= rewind.at + CLOCKS_DIFFER
        });
        // A drain that ran out of time leaves records on their way.
        let drained = self.terms.iter().any(|term| {
            term.epoch < epoch && term.ended_at.is_some_and(|ended| around(ended - CLOCKS_DIFFER, ended))
        });
        if silent {
            Some("term")
        } else if rewound {
            Some("rewind")
        } else if drained {
            Some("drain")
        } else if self.rebased_at.is_some_and(|rebased| published <= rebased + CLOCKS_DIFFER) {
            Some("rebase")
        } else if self.terms.first().is_none_or(|first| published < first.led_at - CLOCKS_DIFFER) {
            Some("before_history")
        } else {
            None
        }
    }
}

/// What a proof of delivery asks.
pub trait Verify: Receipts {
    /// The first message that there is, and how far the settled cursor has come; `None`: there is no message up to it.
    ///
    /// # Errors
    /// [`OutboxError`].
    fn ends(&self) -> impl Future<Output = Result<Option<(Seq, Seq)>, OutboxError>> + Send;

    /// The first message at or above a place, and when it was inserted.
    ///
    /// # Errors
    /// [`OutboxError`].
    fn inserted_at(
        &self,
        at_or_above: Seq,
    ) -> impl Future<Output = Result<Option<(Seq, OffsetDateTime)>, OutboxError>> + Send;

    /// What these messages look like at Kafka, ascending.
    ///
    /// # Errors
    /// [`OutboxError`].
    fn fingerprints(
        &self,
        wanted: &Wanted,
    ) -> impl Future<Output = Result<Vec<Fingerprint>, OutboxError>> + Send;

    /// Which of these ids are messages above one place and up to another; walks over them, unless there is an index.
    ///
    /// # Errors
    /// [`OutboxError`].
    fn named(
        &self,
        ids: &[Uuid],
        above: Seq,
        upto: Seq,
    ) -> impl Future<Output = Result<Vec<(Uuid, Seq)>, OutboxError>> + Send;

    /// Which of these messages were held after an attempt that failed, which Kafka may have kept all the same.
    ///
    /// # Errors
    /// [`OutboxError`].
    fn tried_again(&self, seqs: &[Seq]) -> impl Future<Output = Result<Vec<Seq>, OutboxError>> + Send;

    /// What is known of why messages were published more than once.
    ///
    /// # Errors
    /// [`OutboxError`].
    fn history(&self) -> impl Future<Output = Result<History, OutboxError>> + Send;
}

/// The place from which on messages were inserted at or after a time, more or less: found by halving, because `seq` and time go
/// together but for a moment. `None`: none of `first..=last` was.
///
/// # Errors
/// [`OutboxError`].
pub async fn place_of(
    outbox: &impl Verify,
    time: OffsetDateTime,
    first: Seq,
    last: Seq,
) -> Result<Option<Seq>, OutboxError> {
    let (mut low, mut high) = (first.0, last.0.saturating_add(1));
    while low < high {
        let middle = low + (high - low) / 2;
        match outbox.inserted_at(Seq(middle)).await? {
            Some((seq, at)) if seq <= last && at < time => low = seq.0.saturating_add(1),
            Some(_) | None => high = middle,
        }
    }
    Ok((low <= last.0).then_some(Seq(low)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(minute: i64) -> OffsetDateTime {
        OffsetDateTime::UNIX_EPOCH + Duration::minutes(minute)
    }

    fn term(epoch: i64, led: i64, ended: Option<i64>) -> TermSpan {
        TermSpan { epoch, led_at: at(led), ended_at: ended.map(at) }
    }

    #[test]
    fn a_copy_is_explained_by_what_is_known_of_the_time_it_was_made() {
        let history = History {
            now: at(1_000),
            terms: vec![term(1, 0, None), term(2, 100, Some(200)), term(3, 300, None)],
            rewinds: vec![Rewind { at: at(400), first: Seq(10), last: Seq(20) }],
            rebased_at: None,
        };
        assert_eq!(history.explains(Seq(1), at(50), 2), Some("term"));
        assert_eq!(history.explains(Seq(1), at(50), 1), None, "settled by that very term");
        assert_eq!(history.explains(Seq(1), at(150), 3), None, "a term that ended in order");
        assert_eq!(history.explains(Seq(1), at(199), 3), Some("drain"));
        assert_eq!(history.explains(Seq(15), at(350), 3), Some("rewind"));
        assert_eq!(history.explains(Seq(15), at(450), 3), None, "after the rewind");
        assert_eq!(history.explains(Seq(21), at(350), 3), None, "not among them");
        assert_eq!(history.explains(Seq(1), at(-10), 3), Some("before_history"));
        let rebased = History { rebased_at: Some(at(500)), ..history };
        assert_eq!(rebased.explains(Seq(21), at(350), 3), Some("rebase"));
    }
}
