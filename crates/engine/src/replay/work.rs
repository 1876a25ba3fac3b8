//! The replay that a run works on: what waits, what is with the client, how far it is, and when the next copy may go.
//!
//! Plain state that the pipeline owns; it knows neither ports nor clock.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use outboxd_core::{Message, ReceiptEntry, Seq};
use tokio::task::JoinSet;
use tokio::time::Instant;
use uuid::Uuid;

use crate::outbox::OutboxError;
use crate::replays::{ReplayChunk, ReplayState, ReplayStop, ReplayTask, ReplayTurn};

/// A replay that names no rate gets no more than these a second beside live messages: a copy takes its turn at everything that they need,
/// also at the processor. Never none, so that it gets on.
const BESIDE_LIVE: u32 = 1_000;
/// So long after a live message was in flight another one is expected.
const LIVE_FOR: Duration = Duration::from_millis(500);
/// What was not published in so long may be made up for at once; more than the loop sleeps.
const BURST: Duration = Duration::from_millis(250);

/// What the outbox has answered.
#[derive(Debug)]
pub(crate) enum ReplayAnswer {
    Chunk(Result<Option<ReplayChunk>, OutboxError>, Duration),
    Recorded(Result<Option<ReplayState>, OutboxError>),
}

/// What waits to be handed over, in order.
#[derive(Debug)]
pub(super) enum Waiting {
    Copy(Box<Message>),
    /// Nothing that is meant is left up to here.
    Reached(Seq),
}

/// What was handed over, in order.
#[derive(Debug)]
pub(super) enum Slot {
    Published(Published),
    Acknowledged {
        entry: ReceiptEntry,
        at: Instant,
    },
    /// Not acknowledged, and which one.
    Failed(Seq),
    Reached(Seq),
}

#[derive(Debug)]
pub(super) struct Published {
    pub(super) seq: Seq,
    pub(super) id: Uuid,
    pub(super) topic: Arc<str>,
    pub(super) bytes: usize,
    pub(super) since: Instant,
    /// Nothing else was in flight with it.
    pub(super) alone: bool,
}

/// What the work on a replay is to come to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Mood {
    GoesOn,
    /// Begin again from what is written down, because a copy failed in company.
    Anew,
    /// Somebody else has changed its state: leave it once what is out is known.
    Leaving,
    /// It cannot go on.
    Stopping(ReplayStop),
}

/// The replay that is worked on.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) task: ReplayTask,
    /// What is written down.
    pub(super) pos: Seq,
    /// Up to where the outbox was asked.
    pub(super) read_to: Seq,
    /// Messages that the next question looks at: the fewer are meant, the more.
    pub(super) rows: u32,
    pub(super) waiting: VecDeque<Waiting>,
    pub(super) slots: VecDeque<Slot>,
    /// Number of the first slot.
    pub(super) first: u64,
    /// Slots in front of which nothing is missing, and the place that they come to.
    pub(super) ready: usize,
    pub(super) reached: Seq,
    pub(super) outstanding: usize,
    pub(super) outstanding_bytes: usize,
    pub(super) mood: Mood,
    /// The database knows that this term works on it: nothing is published before.
    pub(super) is_noted: bool,
    /// A copy would be handed over if it did.
    pub(super) is_to_be_noted: bool,
    pub(super) taken_at: Instant,
    pub(super) recorded_at: Instant,
    /// The next copy may go, by the replay's own rate.
    pub(super) due_at: Instant,
    /// Up to here one copy at a time: one of them failed in company.
    pub(super) slow_to: Option<Seq>,
    /// Failed again then, and must be tried with nothing else in flight.
    pub(super) accused: Option<Seq>,
}

/// The replays of a run.
#[derive(Debug)]
pub(crate) struct Replaying {
    pub(crate) calls: JoinSet<ReplayAnswer>,
    /// The question that is on its way, and where it goes on.
    pub(super) asked: Option<Option<(i64, Seq)>>,
    /// How many slots are being written down, and the place that they come to.
    pub(super) recording: Option<(usize, Seq)>,
    /// A replay has ended: there may be another one.
    pub(super) ask_again: bool,
    pub(super) ask_at: Instant,
    pub(super) record_at: Instant,
    /// When a live message was in flight last.
    pub(super) live_at: Option<Instant>,
    pub(super) has_failed: bool,
    /// Copies are not acknowledged although Kafka answers: they are not waited for.
    pub(crate) overdue: bool,
    /// Copies of replays that were let go of before their answers came. The client has them until it is made anew.
    pub(super) abandoned: usize,
    pub(super) work: Option<Work>,
}

impl Replaying {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            calls: JoinSet::new(),
            asked: None,
            recording: None,
            ask_again: false,
            ask_at: now,
            record_at: now,
            live_at: None,
            has_failed: false,
            overdue: false,
            abandoned: 0,
            work: None,
        }
    }

    /// Copies with the client.
    pub(crate) fn outstanding(&self) -> usize {
        self.abandoned + self.work.as_ref().map_or(0, |work| work.outstanding)
    }

    /// Copies that Kafka may have and that will be published again if the run ends here.
    pub(crate) fn unrecorded(&self) -> u64 {
        let slots = self.work.iter().flat_map(|work| &work.slots);
        slots.filter(|slot| !matches!(slot, Slot::Reached(_))).count() as u64
    }

    /// Whether no live message may be published until the first copy is.
    pub(crate) fn waits_alone(&self) -> bool {
        let Some(work) = &self.work else { return false };
        work.mood == Mood::GoesOn && work.next_is_accused() && work.due_at <= Instant::now()
    }

    /// Whether live messages flow: so many are in flight now.
    pub(super) fn is_beside_live(&mut self, messages: usize, now: Instant) -> bool {
        if messages > 0 {
            self.live_at = Some(now);
        }
        self.live_at.is_some_and(|at| now.saturating_duration_since(at) < LIVE_FOR)
    }

    /// An outage has ended: what it cost in time is not the topics' fault.
    pub(crate) fn wait_anew(&mut self, now: Instant) {
        for slot in self.work.iter_mut().flat_map(|work| &mut work.slots) {
            if let Slot::Published(published) = slot {
                published.since = now;
            }
        }
    }

    /// The topics of copies that are with the client.
    pub(crate) fn topics(&self) -> BTreeSet<String> {
        let slots = self.work.iter().flat_map(|work| &work.slots);
        slots
            .filter_map(|slot| match slot {
                Slot::Published(published) => Some(published.topic.to_string()),
                Slot::Acknowledged { .. } | Slot::Failed(_) | Slot::Reached(_) => None,
            })
            .collect()
    }

    /// Whether something must still be written down before the run ends.
    pub(crate) fn has_to_record(&self) -> bool {
        self.recording.is_some()
            || self.work.as_ref().is_some_and(|work| work.recordable(self.overdue).is_some())
    }

    pub(super) fn forget(&mut self) {
        self.abandoned = self.outstanding();
        self.work = None;
        self.ask_again = true;
    }
}

impl Work {
    pub(super) fn new(task: ReplayTask, enough: u32, first: u64, now: Instant) -> Self {
        Self {
            pos: task.pos,
            reached: task.pos,
            ready: 0,
            read_to: task.pos,
            rows: enough,
            task,
            waiting: VecDeque::new(),
            slots: VecDeque::new(),
            first,
            outstanding: 0,
            outstanding_bytes: 0,
            mood: Mood::GoesOn,
            is_noted: false,
            is_to_be_noted: false,
            taken_at: now,
            recorded_at: now,
            due_at: now,
            slow_to: None,
            accused: None,
        }
    }

    pub(super) fn next_is_accused(&self) -> bool {
        match self.waiting.front() {
            Some(Waiting::Copy(message)) => self.accused == Some(message.seq),
            Some(Waiting::Reached(_)) | None => false,
        }
    }

    /// Everything that is waiting is forgotten; what is out is awaited.
    pub(super) fn turn_to(&mut self, mood: Mood) {
        // What an operator wants, and what stops it, is not taken back by a wish to begin anew.
        if !matches!(self.mood, Mood::Stopping(_) | Mood::Leaving) {
            self.mood = mood;
        }
        self.waiting.clear();
    }

    /// A stop holds only once everything before it is published: who resumes behind its message must leave out nothing else. What failed
    /// before it is tried first, and it comes again.
    pub(super) fn look_whether_the_stop_holds(&mut self) {
        let Mood::Stopping(stop) = &self.mood else { return };
        if self.slots.iter().any(|slot| matches!(slot, Slot::Failed(seq) if *seq < stop.seq)) {
            self.mood = Mood::Anew;
        }
    }

    /// Counts the slots in front of which nothing is missing.
    pub(super) fn look_how_far(&mut self) {
        while let Some(slot) = self.slots.get(self.ready) {
            self.reached = match slot {
                Slot::Acknowledged { entry, .. } => entry.seq,
                Slot::Reached(seq) => *seq,
                Slot::Published(_) | Slot::Failed(_) => return,
            }
            .max(self.reached);
            self.ready += 1;
        }
    }

    /// What becomes of the replay with what can be written down; `None`: nothing can.
    pub(super) fn recordable(&self, overdue: bool) -> Option<ReplayTurn> {
        if let Mood::Stopping(stop) = &self.mood {
            let is_known = self.outstanding == 0 || overdue;
            return is_known.then(|| ReplayTurn::Stopped(stop.clone()));
        }
        let turn = if self.reached >= self.task.last { ReplayTurn::Done } else { ReplayTurn::GoesOn };
        (self.ready > 0 || self.is_to_be_noted && !self.is_noted).then_some(turn)
    }

    pub(super) fn receipts(&self, slots: usize, now: Instant) -> Vec<ReceiptEntry> {
        let entries = self.slots.iter().take(slots).filter_map(|slot| match slot {
            Slot::Acknowledged { entry, at } => {
                let before = now.saturating_duration_since(*at).as_millis();
                let acknowledged_ms_before = u32::try_from(before).unwrap_or(u32::MAX);
                Some(ReceiptEntry { acknowledged_ms_before, ..entry.clone() })
            }
            Slot::Published(_) | Slot::Failed(_) | Slot::Reached(_) => None,
        });
        entries.collect()
    }

    /// A copy has gone: when the next one may.
    pub(super) fn paced(&mut self, now: Instant, is_beside_live: bool) {
        let (rate, burst) = match self.task.rate {
            Some(rate) => (rate, BURST),
            None if is_beside_live => (BESIDE_LIVE, BURST / 10),
            None => return,
        };
        let earliest = now.checked_sub(burst).unwrap_or(now);
        self.due_at = self.due_at.max(earliest) + Duration::from_secs(1) / rate.max(1);
    }
}
