//! What happened to each message, and whether that was allowed.

use std::collections::BTreeMap;
use std::fmt;

/// A promise that was not kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Violation {
    /// Committed and never published, or not again after a restart took it back.
    Lost(i64),
    /// Published, though it was rolled back or not yet committed.
    Invented(i64),
    /// Published again, though it was settled or no restart took it back.
    Twice(i64),
    /// Published after one whose writer began to insert when this one was committed already.
    Inverted { first: i64, second: i64 },
    /// The database holds another cursor than the one that was settled.
    OtherCursor(String),
    /// There are pages and pages, and no end.
    NoRest,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost(seq) => write!(f, "message {seq} is lost"),
            Self::Invented(seq) => write!(f, "message {seq} is published and was never committed"),
            Self::Twice(seq) => write!(f, "message {seq} is published twice"),
            Self::Inverted { first, second } => {
                write!(
                    f,
                    "message {second} is published before {first}, which was committed before {second} was inserted"
                )
            }
            Self::OtherCursor(text) => write!(f, "the stored cursor is not the settled one: {text}"),
            Self::NoRest => write!(f, "the outbox never comes to rest"),
        }
    }
}

/// One message's story. Times are step numbers.
#[derive(Clone, Debug)]
struct Story {
    inserted_at: usize,
    /// The transaction of the writer that wrote it.
    written_by: (usize, usize),
    rolled_back: bool,
    committed_at: Option<usize>,
    /// Place of its first copy, if every copy reached the log.
    first: Option<usize>,
    /// Place of its first copy, if a restart took back whatever was not settled.
    sure: Option<usize>,
    settled: bool,
}

/// The stories of one case.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    stories: BTreeMap<i64, Story>,
    published: usize,
}

impl Ledger {
    pub(super) fn inserted(&mut self, seq: i64, at: usize, written_by: (usize, usize)) {
        let story = Story {
            inserted_at: at,
            written_by,
            rolled_back: false,
            committed_at: None,
            first: None,
            sure: None,
            settled: false,
        };
        self.stories.insert(seq, story);
    }

    /// Messages of a subtransaction that is undone.
    pub(super) fn undone(&mut self, seqs: &[i64]) {
        for seq in seqs {
            if let Some(story) = self.stories.get_mut(seq) {
                story.rolled_back = true;
            }
        }
    }

    pub(super) fn committed(&mut self, written_by: (usize, usize), at: usize) {
        for story in self.stories.values_mut().filter(|story| story.written_by == written_by) {
            if !story.rolled_back {
                story.committed_at = Some(at);
            }
        }
    }

    pub(super) fn published(&mut self, seq: i64) -> Option<Violation> {
        let at = self.published;
        self.published += 1;
        match self.stories.get_mut(&seq) {
            Some(story) if story.committed_at.is_some() => {
                if story.sure.is_some() {
                    return Some(Violation::Twice(seq));
                }
                story.first.get_or_insert(at);
                story.sure = Some(at);
                None
            }
            _ => Some(Violation::Invented(seq)),
        }
    }

    pub(super) fn settled(&mut self, seq: i64) {
        if let Some(story) = self.stories.get_mut(&seq) {
            story.settled = true;
        }
    }

    /// What was in flight may be in the log or not; it must come again.
    pub(super) fn restarted(&mut self) {
        for story in self.stories.values_mut().filter(|story| !story.settled) {
            story.sure = None;
        }
    }

    /// Once everything is committed and drained.
    pub(super) fn judge(&self) -> Option<Violation> {
        let lost =
            self.stories.iter().find(|(_, story)| story.committed_at.is_some() && story.sure.is_none());
        if let Some((seq, _)) = lost {
            return Some(Violation::Lost(*seq));
        }
        self.inverted(|story| story.first).or_else(|| self.inverted(|story| story.sure))
    }

    /// A message whose writer was serialised before that of an earlier published one.
    fn inverted(&self, place: impl Fn(&Story) -> Option<usize>) -> Option<Violation> {
        let mut copies: Vec<_> = self
            .stories
            .iter()
            .filter_map(|(seq, story)| Some((place(story)?, *seq, story.inserted_at, story.committed_at?)))
            .collect();
        copies.sort_unstable();
        let mut latest: Option<(usize, i64)> = None;
        for (_, seq, inserted_at, committed_at) in copies {
            if let Some((inserted_before, second)) = latest
                && committed_at < inserted_before
            {
                return Some(Violation::Inverted { first: seq, second });
            }
            latest = latest.max(Some((inserted_at, seq)));
        }
        None
    }
}
