//! The dispatch cursor: what has been dealt with, as one small value.
//!
//! `(high, seen)` means *every message with `seq <= high` that is visible in `seen` has been dealt with*. With a catch-up
//! `(high, seen, pos, until)` it also means *every message with `seq <= pos` that is visible in `until` and not in
//! `seen`*. A page is read by one statement, so its rows and its snapshot belong together; [`PageFrame::cursor_after`]
//! says where the cursor stands when a prefix of the page has been dealt with.
//!
//! This module does not know what a snapshot looks like. A database with a single writer uses [`Snapshot::none`] and its
//! cursor is `high` alone.

use std::fmt;
use std::sync::Arc;

use crate::message::{Message, Seq};

/// Which transactions a statement saw, in the adapter's own text (`pg_snapshot` for PostgreSQL).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]

pub struct Snapshot(Arc<str>);

impl Snapshot {
    /// Wraps the adapter's text.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(Arc::from(text))
    }

    /// The snapshot of a database with a single writer: everything committed is seen.
    #[must_use]
    pub fn none() -> Self {
        Self(Arc::from(""))
    }

    /// The adapter's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A run through late messages that did not fit one page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CatchUp {
    /// Late messages up to here have been dealt with.
    pub pos: Seq,
    /// The snapshot that fixes which messages the catch-up is about.
    pub until: Snapshot,
}

/// What has been dealt with. See the module documentation for its meaning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// Highest `seq` dealt with.
    pub high: Seq,
    /// Snapshot below `high`.
    pub seen: Snapshot,
    /// Set while late messages are read in several pages.
    pub catch_up: Option<CatchUp>,
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.high, self.seen.as_str())?;
        match &self.catch_up {
            Some(catch_up) => write!(f, "+{}@{}", catch_up.pos, catch_up.until.as_str()),
            None => Ok(()),
        }
    }
}

/// Messages read by one statement, in `seq` order, with what is needed to place the cursor after them.
#[derive(Clone, Debug)]
pub struct Page {
    /// The cursor that the page was read from.
    pub from: Cursor,
    /// The snapshot of the statement that read it.
    pub snapshot: Snapshot,
    /// How many of `messages` are late: at or below `from.high`. They come first.
    pub late: usize,
    /// Whether `messages` holds every late message that the statement could see (of the catch-up, if there is one).
    /// If not, the page holds late messages only.
    pub late_complete: bool,
    /// The messages, ascending by `seq`.
    pub messages: Vec<Message>,
}

impl Page {
    /// Splits the page into the frame that stays until it is settled and the messages that move on.
    #[must_use]
    pub fn into_parts(self) -> (PageFrame, Vec<Message>) {
        let frame = PageFrame {
            from: self.from,
            snapshot: self.snapshot,
            late: self.late,
            late_complete: self.late_complete,
            seqs: self.messages.iter().map(|message| message.seq).collect(),
        };
        (frame, self.messages)
    }

    /// The cursor after the whole page: where the next page is read from.
    #[must_use]
    pub fn cursor_after(&self) -> Cursor {
        cursor_after(
            &self.from,
            &self.snapshot,
            self.late,
            self.late_complete,
            self.messages.len(),
            self.messages.len(),
            |index| self.messages[index].seq,
        )
    }
}

/// A page without its messages: what settling needs.
#[derive(Clone, Debug)]
pub struct PageFrame {
    from: Cursor,
    snapshot: Snapshot,
    late: usize,
    late_complete: bool,
    seqs: Vec<Seq>,
}

impl PageFrame {
    /// Number of messages.
    #[must_use]
    pub fn len(&self) -> usize {
        self.seqs.len()
    }

    /// Whether the page is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.seqs.is_empty()
    }

    /// `seq` of the message at `index`.
    #[must_use]
    pub fn seq(&self, index: usize) -> Seq {
        self.seqs[index]
    }

    /// Whether the message at `index` is a late one.
    #[must_use]
    pub fn is_late(&self, index: usize) -> bool {
        index < self.late
    }

    /// The cursor after the first `dealt_with` messages of the page.
    ///
    /// # Panics
    /// If `dealt_with` is larger than the page: a bug of the caller.
    #[must_use]
    pub fn cursor_after(&self, dealt_with: usize) -> Cursor {
        cursor_after(
            &self.from,
            &self.snapshot,
            self.late,
            self.late_complete,
            self.seqs.len(),
            dealt_with,
            |index| self.seqs[index],
        )
    }
}

/// The one rule by which the cursor moves. Moving `seen` forward without every late message would lose some, and
/// moving `high` without the maximum would rewind it.
fn cursor_after(
    from: &Cursor,
    snapshot: &Snapshot,
    late: usize,
    late_complete: bool,
    len: usize,
    dealt_with: usize,
    seq: impl Fn(usize) -> Seq,
) -> Cursor {
    assert!(dealt_with <= len, "a page of {len} messages has no prefix of {dealt_with}");
    let late_dealt_with = dealt_with >= late && late_complete;
    let last = dealt_with.checked_sub(1).map(seq);
    match (&from.catch_up, late_dealt_with, last) {
        (None, true, last) => Cursor {
            high: last.map_or(from.high, |last| last.max(from.high)),
            seen: snapshot.clone(),
            catch_up: None,
        },
        (None, false, Some(pos)) => Cursor {
            high: from.high,
            seen: from.seen.clone(),
            catch_up: Some(CatchUp { pos, until: snapshot.clone() }),
        },
        (Some(catch_up), true, _) => Cursor { high: from.high, seen: catch_up.until.clone(), catch_up: None },
        (Some(catch_up), false, Some(pos)) => Cursor {
            high: from.high,
            seen: from.seen.clone(),
            catch_up: Some(CatchUp { pos, until: catch_up.until.clone() }),
        },
        (_, false, None) => from.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cursor(high: i64, catch_up: Option<(i64, &str)>) -> Cursor {
        Cursor {
            high: Seq(high),
            seen: Snapshot::new("S"),
            catch_up: catch_up.map(|(pos, until)| CatchUp { pos: Seq(pos), until: Snapshot::new(until) }),
        }
    }

    fn frame(from: Cursor, late: usize, late_complete: bool, seqs: &[i64]) -> PageFrame {
        PageFrame {
            from,
            snapshot: Snapshot::new("P"),
            late,
            late_complete,
            seqs: seqs.iter().copied().map(Seq).collect(),
        }
    }

    #[test]
    fn a_whole_page_moves_high_and_snapshot() {
        let after = frame(cursor(10, None), 1, true, &[7, 11, 12]).cursor_after(3);
        assert_eq!(after, Cursor { high: Seq(12), seen: Snapshot::new("P"), catch_up: None });
    }

    #[test]
    fn a_page_of_late_messages_alone_never_rewinds_high() {
        let after = frame(cursor(10, None), 2, true, &[3, 7]).cursor_after(2);
        assert_eq!(after.high, Seq(10));
        assert_eq!(after.seen, Snapshot::new("P"));
    }

    #[test]
    fn an_empty_page_moves_the_snapshot_alone() {
        let after = frame(cursor(10, None), 0, true, &[]).cursor_after(0);
        assert_eq!(after, Cursor { high: Seq(10), seen: Snapshot::new("P"), catch_up: None });
    }

    #[test]
    fn a_stop_inside_the_late_messages_keeps_the_old_snapshot() {
        let after = frame(cursor(10, None), 2, true, &[3, 7, 11]).cursor_after(1);
        assert_eq!(after, cursor(10, Some((3, "P"))));
    }

    #[test]
    fn a_full_late_arm_starts_a_catch_up_even_at_the_pages_end() {
        let after = frame(cursor(10, None), 2, false, &[3, 7]).cursor_after(2);
        assert_eq!(after, cursor(10, Some((7, "P"))));
    }

    #[test]
    fn a_catch_up_keeps_its_snapshot_until_fewer_than_a_page_come() {
        let from = cursor(10, Some((3, "S2")));
        assert_eq!(frame(from.clone(), 2, false, &[5, 6]).cursor_after(2), cursor(10, Some((6, "S2"))));
        let done = frame(from, 1, true, &[7]).cursor_after(1);
        assert_eq!(done, Cursor { high: Seq(10), seen: Snapshot::new("S2"), catch_up: None });
    }

    #[test]
    fn nothing_dealt_with_leaves_the_cursor_where_it_was() {
        let from = cursor(10, Some((3, "S2")));
        assert_eq!(frame(from.clone(), 2, false, &[5, 6]).cursor_after(0), from);
        let from = cursor(10, None);
        assert_eq!(frame(from.clone(), 2, true, &[5, 6]).cursor_after(0), from);
    }
}
