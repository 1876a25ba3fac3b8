//! What is between read and settled: frames in the order in which they were read, a slot a message.
//!
//! Settling takes the longest prefix in which every message has its verdict. The window knows neither clock nor ports; it
//! is plain state that the pipeline owns.

use std::collections::VecDeque;
use std::sync::Arc;

use outboxd_core::{Cursor, Destination, Hold, KeyHash, PageFrame, Receipt, ReceiptEntry, Scheduled, Seq};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use uuid::Uuid;

use crate::attempt::Followed;
use crate::publisher::Token;

/// Messages that one frame may hold: tokens have so many bits for the place in the frame.
pub(crate) const FRAME_MESSAGES_MAX: usize = 1 << 20;

/// What is remembered of a message after its payload has moved on.
#[derive(Debug)]
pub(crate) struct Meta {
    pub(crate) seq: Seq,
    pub(crate) id: Uuid,
    pub(crate) correlation_id: String,
    /// Where it goes, and the policy of its topic.
    pub(crate) destination: Arc<Destination>,
    /// The key that keeps its order with it.
    pub(crate) key_hash: Option<KeyHash>,
    /// The key, if the log is to show it.
    pub(crate) key_shown: Option<Box<str>>,
    /// `None`: read from the outbox; `Some`: released from the held messages, with the attempts charged before.
    pub(crate) released: Option<u32>,
    /// When the intent was inserted, on this process's clock.
    pub(crate) inserted_at: Instant,
    /// Whoever follows the attempt under way.
    pub(crate) followed: Followed,
}

impl Meta {
    pub(crate) fn attempts(&self) -> u32 {
        self.released.unwrap_or(0)
    }

    pub(crate) fn topic(&self) -> &str {
        &self.destination.topic
    }
}

#[derive(Debug)]
enum Slot {
    /// No verdict yet.
    Open(Meta),
    /// With the client; the flag says whether nothing else was in flight with it.
    Published(Meta, bool),
    Dispatched {
        meta: Meta,
        receipt: Receipt,
        at: Instant,
    },
    Held {
        hold: Hold,
    },
    /// Parked, once its copy is on the dead-letter topic; the flag says whether the copy is with the client.
    Copying(bool),
    Scheduled(Scheduled),
    /// Failed in a way that is nobody's fault: it will be read again, so nothing from here on is settled.
    Void(Seq),
    Settling,
}

#[derive(Debug)]
enum Kind {
    Page(PageFrame),
    Release,
}

#[derive(Debug)]
struct Frame {
    kind: Kind,
    slots: Vec<Slot>,
    /// Slots that a written settle covers.
    settled: usize,
    /// Slots that have their verdict, counted from the front without a gap.
    ready: usize,
    bytes: usize,
    _budget: Option<Budgeted>,
}

/// The share of the in-flight budget that a frame holds until it is settled.
#[derive(Debug)]
pub(crate) struct Budgeted {
    pub(crate) _messages: OwnedSemaphorePermit,
    pub(crate) _bytes: OwnedSemaphorePermit,
}

/// What one settle writes.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) after: Option<Cursor>,
    pub(crate) receipts: Vec<ReceiptEntry>,
    pub(crate) receipts_out_of_order: Vec<ReceiptEntry>,
    pub(crate) holds: Vec<Hold>,
    pub(crate) released: Vec<Seq>,
    pub(crate) scheduled: Vec<Scheduled>,
    pub(crate) dispatched: u64,
}

/// Messages that Kafka may hold although nothing says so in the database.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Duplicates {
    pub(crate) messages: u64,
    /// The first and the last of those that are known by name.
    pub(crate) span: Option<(Seq, Seq)>,
}

impl Duplicates {
    fn add(&mut self, seq: Option<Seq>) {
        self.messages += 1;
        if let Some(seq) = seq {
            let (first, last) = self.span.unwrap_or((seq, seq));
            self.span = Some((first.min(seq), last.max(seq)));
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Window {
    frames: VecDeque<Frame>,
    /// Number of the first frame; numbers are never used twice, so that a report of an earlier life names nothing.
    first: u64,
    outstanding: usize,
    messages: usize,
    bytes: usize,
    holds_unsettled: usize,
}

impl Window {
    /// An empty window whose first frame gets this number.
    pub(crate) fn starting_at(first: u64) -> Self {
        Self { first, ..Self::default() }
    }

    /// The number of the next frame: what a later window must start at.
    pub(crate) fn next_number(&self) -> u64 {
        self.first + self.frames.len() as u64
    }

    pub(crate) fn push_page(
        &mut self,
        frame: PageFrame,
        metas: Vec<Meta>,
        bytes: usize,
        budget: Budgeted,
    ) -> u64 {
        self.push(Kind::Page(frame), metas, bytes, Some(budget))
    }

    pub(crate) fn push_release(&mut self, metas: Vec<Meta>, bytes: usize) -> u64 {
        self.push(Kind::Release, metas, bytes, None)
    }

    fn push(&mut self, kind: Kind, metas: Vec<Meta>, bytes: usize, budget: Option<Budgeted>) -> u64 {
        let number = self.next_number();
        self.messages += metas.len();
        self.bytes += bytes;
        let slots = metas.into_iter().map(Slot::Open).collect();
        self.frames.push_back(Frame { kind, slots, settled: 0, ready: 0, bytes, _budget: budget });
        number
    }

    pub(crate) fn token(frame: u64, index: usize) -> Token {
        debug_assert!(index < FRAME_MESSAGES_MAX);
        Token(frame * FRAME_MESSAGES_MAX as u64 + index as u64)
    }

    fn slot(&mut self, token: Token) -> Option<&mut Slot> {
        let number = token.0 / FRAME_MESSAGES_MAX as u64;
        let index = usize::try_from(token.0 % FRAME_MESSAGES_MAX as u64).ok()?;
        let frame = usize::try_from(number.checked_sub(self.first)?).ok()?;
        self.frames.get_mut(frame)?.slots.get_mut(index)
    }

    /// The message was handed to the client.
    pub(crate) fn published(&mut self, token: Token, alone: bool, followed: Followed) {
        if let Some(slot) = self.slot(token)
            && let Slot::Open(mut meta) = std::mem::replace(slot, Slot::Settling)
        {
            meta.followed = followed;
            *slot = Slot::Published(meta, alone);
            self.outstanding += 1;
        }
    }

    /// Takes the message that a report is about; whether it was alone. `None` for a report of an earlier life.
    pub(crate) fn reported(&mut self, token: Token) -> Option<(Meta, bool)> {
        let slot = self.slot(token)?;
        match std::mem::replace(slot, Slot::Settling) {
            Slot::Published(meta, alone) => {
                *slot = Slot::Void(meta.seq);
                self.outstanding -= 1;
                Some((meta, alone))
            }
            other => {
                *slot = other;
                None
            }
        }
    }

    /// Takes a message that has no verdict and is not published; it must be given one.
    pub(crate) fn take_open(&mut self, token: Token) -> Option<Meta> {
        let slot = self.slot(token)?;
        match std::mem::replace(slot, Slot::Settling) {
            Slot::Open(meta) => {
                *slot = Slot::Void(meta.seq);
                Some(meta)
            }
            other => {
                *slot = other;
                None
            }
        }
    }

    /// What is known of a message that has no verdict and is not published.
    pub(crate) fn open(&mut self, token: Token) -> Option<&Meta> {
        match self.slot(token)? {
            Slot::Open(meta) => Some(meta),
            _ => None,
        }
    }

    pub(crate) fn dispatched(&mut self, token: Token, meta: Meta, receipt: Receipt, at: Instant) {
        self.decide(token, Slot::Dispatched { meta, receipt, at });
    }

    pub(crate) fn held(&mut self, token: Token, hold: Hold) {
        self.holds_unsettled += 1;
        self.decide(token, Slot::Held { hold });
    }

    /// The message will be parked once it is copied: a hold that is no row yet.
    pub(crate) fn copying(&mut self, token: Token) {
        self.holds_unsettled += 1;
        self.decide(token, Slot::Copying(false));
    }

    /// The copy was handed to the client.
    pub(crate) fn copy_published(&mut self, token: Token) {
        self.outstanding += 1;
        self.decide(token, Slot::Copying(true));
    }

    /// There is a report about the copy.
    pub(crate) fn copy_reported(&mut self, token: Token) {
        self.outstanding -= 1;
        self.decide(token, Slot::Copying(false));
    }

    /// A record that has no place here was handed to the client.
    pub(crate) fn beside_published(&mut self) {
        self.outstanding += 1;
    }

    /// There is a report about it.
    pub(crate) fn beside_reported(&mut self) {
        self.outstanding -= 1;
    }

    /// The message is parked now, copied or not.
    pub(crate) fn copied(&mut self, token: Token, hold: Hold) {
        self.decide(token, Slot::Held { hold });
    }

    pub(crate) fn scheduled(&mut self, token: Token, scheduled: Scheduled) {
        self.holds_unsettled += 1;
        self.decide(token, Slot::Scheduled(scheduled));
    }

    fn decide(&mut self, token: Token, verdict: Slot) {
        if let Some(slot) = self.slot(token) {
            *slot = verdict;
        }
    }

    /// Records with the client that have no report.
    pub(crate) fn outstanding(&self) -> usize {
        self.outstanding
    }

    /// Messages that are read and not settled.
    pub(crate) fn messages(&self) -> usize {
        self.messages
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Holds, and messages put aside until their time, that were decided and are not yet rows.
    pub(crate) fn holds_unsettled(&self) -> usize {
        self.holds_unsettled
    }

    /// Whether released messages are under way whose held rows still stand: asking for due ones would bring them again.
    pub(crate) fn has_releases(&self) -> bool {
        self.frames.iter().any(|frame| matches!(frame.kind, Kind::Release))
    }

    /// Messages that Kafka may hold although nothing says so in the database.
    pub(crate) fn possible_duplicates(&self) -> Duplicates {
        let mut duplicates = Duplicates::default();
        for slot in self.frames.iter().flat_map(|frame| &frame.slots) {
            match slot {
                Slot::Published(meta, _) | Slot::Dispatched { meta, .. } => duplicates.add(Some(meta.seq)),
                Slot::Void(seq) => duplicates.add(Some(*seq)),
                Slot::Settling | Slot::Copying(true) => duplicates.add(None),
                Slot::Held { hold } if hold.dead_letter.is_some() => duplicates.add(None),
                Slot::Held { .. } | Slot::Copying(false) | Slot::Open(_) | Slot::Scheduled(_) => {}
            }
        }
        duplicates
    }

    /// Whether a settle would have something to write.
    pub(crate) fn has_ready(&mut self) -> bool {
        for frame in &mut self.frames {
            while frame.slots.get(frame.ready).is_some_and(Slot::has_verdict) {
                frame.ready += 1;
            }
            if frame.ready > frame.settled {
                return true;
            }
            if frame.ready < frame.slots.len() {
                return false;
            }
        }
        false
    }

    /// Collects the longest prefix in which every message has its verdict. One batch at a time: call
    /// [`Window::settled`] once it is written.
    pub(crate) fn collect(&mut self, now: Instant) -> Batch {
        let mut batch = Batch::default();
        for frame in &mut self.frames {
            while frame.slots.get(frame.ready).is_some_and(Slot::has_verdict) {
                frame.ready += 1;
            }
            for index in frame.settled..frame.ready {
                let slot = std::mem::replace(&mut frame.slots[index], Slot::Settling);
                let in_order = match &frame.kind {
                    Kind::Page(page) => !page.is_late(index),
                    Kind::Release => false,
                };
                batch.take(slot, in_order, now);
            }
            if let Kind::Page(page) = &frame.kind
                && frame.ready > frame.settled
            {
                batch.after = Some(page.cursor_after(frame.ready));
            }
            if frame.ready < frame.slots.len() {
                break;
            }
        }
        batch
    }

    /// The batch that was collected last is written.
    pub(crate) fn settled(&mut self) {
        for frame in &mut self.frames {
            let newly =
                frame.slots[frame.settled..].iter().take_while(|slot| matches!(slot, Slot::Settling)).count();
            frame.settled += newly;
            if frame.settled < frame.slots.len() {
                break;
            }
        }
        while self.frames.front().is_some_and(|frame| frame.settled == frame.slots.len()) {
            if let Some(frame) = self.frames.pop_front() {
                self.first += 1;
                self.messages -= frame.slots.len();
                self.bytes -= frame.bytes;
            }
        }
    }

    /// So many holds have become rows.
    pub(crate) fn holds_settled(&mut self, holds: usize) {
        self.holds_unsettled -= holds;
    }
}

impl Slot {
    fn has_verdict(&self) -> bool {
        matches!(self, Self::Dispatched { .. } | Self::Held { .. } | Self::Scheduled(_) | Self::Settling)
    }
}

impl Batch {
    fn take(&mut self, slot: Slot, in_order: bool, now: Instant) {
        match slot {
            Slot::Dispatched { meta, receipt, at } => {
                let before = now.saturating_duration_since(at).as_millis();
                let entry = ReceiptEntry {
                    seq: meta.seq,
                    topic: meta.topic().to_owned(),
                    receipt,
                    acknowledged_ms_before: u32::try_from(before).unwrap_or(u32::MAX),
                };
                self.dispatched += 1;
                if meta.released.is_some() {
                    self.released.push(meta.seq);
                }
                if in_order {
                    self.receipts.push(entry);
                } else {
                    self.receipts_out_of_order.push(entry);
                }
            }
            Slot::Held { hold } => self.holds.push(hold),
            Slot::Scheduled(scheduled) => self.scheduled.push(scheduled),
            Slot::Open(_) | Slot::Published(..) | Slot::Copying(_) | Slot::Void(_) | Slot::Settling => {}
        }
    }
}
