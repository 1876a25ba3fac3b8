//! Replays: dispatched messages that are published again on purpose, beside the live ones.
//!
//! One task, the pipeline's, hands the copies of one replay to the client in the order of their `seq`, so those of a key keep their
//! order. They are no part of the window: nothing waits for them, no key is busy because of them, and the cursor knows nothing of them. Live
//! messages go first: a copy is handed over only while no live message waits, and only a small share of what may be in flight are copies.
//!
//! Before the first copy the database is told that this term takes the replay up: one of its messages may end the process, and relays
//! that end one after the other without having got anywhere must not do so for ever. Live messages have [`crate::caution`] for that.
//!
//! What was acknowledged without a gap is written down about once a second. So a crash, an outage or the end of a term publishes some
//! copies once more, from the place that was written down last, in the same order. An outage is nobody's fault; what is refused for its
//! own sake, or whose topic cannot be written to, stops the replay, because nothing may be left out of one in silence.

mod work;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use outboxd_core::{
    DeliveryError, Message, Receipt, ReceiptEntry, Record, Refusal, Seq, Verdict, classify, replayed,
};
use rand::RngExt;
use tokio::task::JoinError;
use tokio::time::Instant;

use crate::observe::Event;
use crate::outbox::{Outbox, OutboxError, PageLimit, chain};
use crate::pipeline::Pipeline;
use crate::publisher::{EnqueueError, Publisher, Token};
use crate::replays::{ReplayChunk, ReplayProgress, ReplayQuery, ReplayState, ReplayStop, ReplayTurn};
use crate::topics::Leave;
use work::{Mood, Published, ReplayAnswer, Slot, Waiting, Work};

pub(crate) use work::Replaying;

/// Tokens of copies; those of the window count frames and never come so far.
const COPY: u64 = 1 << 63;
/// Copies have at most this part of what may be in flight.
const SHARE: usize = 16;
/// Messages that one question looks at, meant or not: some milliseconds of the database's time.
const ROWS_MAX: u32 = 10_000;
/// Between two times that progress is written down.
const RECORD_EVERY: Duration = Duration::from_secs(1);
/// Copies after which it is written down earlier.
const RECORD_COPIES: usize = 20_000;
/// Copies, handed over and not written down, behind which no more are handed over.
const SLOTS_MAX: usize = 2 * RECORD_COPIES;
/// So many terms that took a replay up and ended without a word, and nothing was written down: it is not taken up again.
const IN_VAIN_MAX: u32 = 3;
/// After a question or an answer that failed.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// What becomes of the copy at the front.
enum Step {
    Published,
    Wait,
    Stop(String),
}

impl<O: Outbox, P: Publisher> Pipeline<'_, O, P> {
    /// Asks for the next messages of a replay, if one runs and there is room.
    pub(crate) fn ask_for_replay(&mut self) {
        let now = Instant::now();
        let busy = self.quiet.is_some() || self.caution.is_cautious() || !self.cluster.verified;
        if self.replay.asked.is_some() || busy || now < self.replay.ask_at {
            return;
        }
        let (messages, bytes) = self.share();
        let going_on = match &self.replay.work {
            None => {
                let wanted = self.lasting.replay_wanted.swap(false, Ordering::AcqRel);
                if !wanted && !std::mem::take(&mut self.replay.ask_again) {
                    return;
                }
                None
            }
            Some(work) => {
                let has_room = work.waiting.len() < messages / 2 + 1 && work.outstanding_bytes < bytes;
                if work.mood != Mood::GoesOn || work.read_to >= work.task.last || !has_room {
                    return;
                }
                Some((work.task.replay, work.read_to))
            }
        };
        let limit = PageLimit { messages: self.enough(), bytes: (bytes as u64).min(self.config.page.bytes) };
        let rows = self.replay.work.as_ref().map_or(limit.messages, |work| work.rows);
        let query = ReplayQuery { term: self.term, going_on, limit, rows };
        self.replay.asked = Some(going_on);
        let outbox = Arc::clone(self.outbox);
        self.replay.calls.spawn(async move {
            let answer = outbox.replay_chunk(&query).await;
            ReplayAnswer::Chunk(answer, now.elapsed())
        });
    }

    /// Copies, and their bytes, that may be in flight.
    fn share(&self) -> (usize, usize) {
        ((self.config.in_flight_messages / SHARE).max(1), (self.config.in_flight_bytes / SHARE).max(1))
    }

    /// Messages that one question asks for.
    fn enough(&self) -> u32 {
        u32::try_from(self.share().0).unwrap_or(u32::MAX).min(self.config.page.messages).max(1)
    }

    pub(crate) fn replay_answered(
        &mut self,
        answer: Result<ReplayAnswer, JoinError>,
    ) -> Result<(), OutboxError> {
        match answer.map_err(|error| OutboxError::unavailable("ask for replays", error))? {
            ReplayAnswer::Chunk(answer, took) => {
                let going_on = self.replay.asked.take().flatten();
                match answer {
                    Ok(chunk) => self.take_chunk(going_on, chunk, took),
                    Err(error) => self.replay_call_failed(error)?,
                }
            }
            ReplayAnswer::Recorded(answer) => {
                let (slots, place) = self.replay.recording.take().unwrap_or_default();
                match answer {
                    Ok(state) => self.recorded(slots, place, state),
                    Err(error) => self.replay_call_failed(error)?,
                }
            }
        }
        Ok(())
    }

    /// Costs the replay time and nothing else, unless the term is over.
    fn replay_call_failed(&mut self, error: OutboxError) -> Result<(), OutboxError> {
        if matches!(error, OutboxError::Fenced) {
            return Err(error);
        }
        if std::mem::replace(&mut self.replay.has_failed, true) {
            tracing::warn!(target: "outboxd::replay", error = chain(&error), "the database is not told of replays, or does not tell");
        } else {
            // Once may be an outage, which others tell of and which ends the term.
            tracing::debug!(target: "outboxd::replay", error = chain(&error), "a question about replays failed");
        }
        let again_at = Instant::now() + RETRY_AFTER;
        (self.replay.ask_at, self.replay.record_at) = (again_at, again_at);
        self.replay.ask_again |= self.replay.work.is_none();
        Ok(())
    }

    fn take_chunk(&mut self, going_on: Option<(i64, Seq)>, chunk: Option<ReplayChunk>, took: Duration) {
        self.replay.has_failed = false;
        let now = Instant::now();
        let Some(ReplayChunk { task, messages, reached }) = chunk else {
            // Paused or cancelled, or there is none.
            if let Some(work) = &mut self.replay.work {
                work.turn_to(Mood::Leaving);
            }
            return;
        };
        let enough = self.enough();
        let work = match &mut self.replay.work {
            Some(work) if work.mood == Mood::GoesOn && Some((task.replay, work.read_to)) == going_on => work,
            // Asked for before it was to begin anew, or to stop.
            Some(_) => return,
            // Left meanwhile: what was asked for goes on behind copies that nobody has published.
            None if going_on.is_some() => return,
            none @ None => {
                tracing::info!(target: "outboxd::replay", replay = task.replay, who = task.who, total = task.total,
                    from = task.pos.0, to_topic = task.to_topic, rate = task.rate, "publishing again what a replay asks for");
                let slow_to = self.lasting.replay_slow_to.filter(|(replay, _)| *replay == task.replay);
                let slow_to = slow_to.map(|(_, seq)| seq);
                none.insert(Work { slow_to, ..Work::new(task, enough, self.lasting.replay_slot, now) })
            }
        };
        if messages.is_empty() {
            // Looking for what is meant takes half of the connection that it shares, not all.
            self.replay.ask_at = now + took;
        }
        let few = messages.len() * 4 < usize::try_from(work.rows).unwrap_or(usize::MAX);
        work.rows = if few { work.rows.saturating_mul(2).min(ROWS_MAX.max(enough)) } else { enough };
        work.read_to = reached;
        work.waiting.extend(messages.into_iter().map(|message| Waiting::Copy(Box::new(message))));
        work.waiting.push_back(Waiting::Reached(reached));
    }

    /// Publishes copies, until something must be waited for. How many.
    pub(crate) fn feed_replay(&mut self) -> usize {
        let mut published = 0;
        loop {
            let gives_way = !self.feed.is_empty() && !self.replay.waits_alone();
            if self.quiet.is_some() || self.alone || self.full || gives_way || self.copies.wait_alone() {
                return published;
            }
            let Some(work) = self.replay.work.as_mut().filter(|work| work.mood == Mood::GoesOn) else {
                return published;
            };
            match work.waiting.pop_front() {
                None => return published,
                Some(Waiting::Reached(seq)) => {
                    work.slots.push_back(Slot::Reached(seq));
                    self.lasting.replay_slot += 1;
                }
                Some(Waiting::Copy(message)) => match self.publish_copy_again(&message) {
                    Step::Published => published += 1,
                    Step::Wait => {
                        if let Some(work) = &mut self.replay.work {
                            work.waiting.push_front(Waiting::Copy(message));
                        }
                        return published;
                    }
                    Step::Stop(error) => {
                        self.stop_replay(ReplayStop { seq: message.seq, id: message.id, error });
                    }
                },
            }
        }
    }

    fn publish_copy_again(&mut self, message: &Message) -> Step {
        let now = Instant::now();
        let (messages_max, bytes_max) = self.share();
        let is_beside_live = self.replay.is_beside_live(self.window.messages(), now);
        let Some(work) = &self.replay.work else { return Step::Wait };
        let is_slow = work.slow_to.is_some_and(|seq| message.seq <= seq);
        let alone = work.accused == Some(message.seq);
        let in_flight_max = if is_slow { 1 } else { messages_max };
        // Those behind a copy that is not acknowledged cannot be written down.
        let is_long = work.slots.len() >= SLOTS_MAX;
        let is_full = work.outstanding >= in_flight_max || work.outstanding_bytes >= bytes_max || is_long;
        let is_early = now < work.due_at && (is_beside_live || work.task.rate.is_some());
        if is_full || is_early || (alone && self.window.outstanding() > 0) {
            return Step::Wait;
        }
        let replay = work.task.replay;
        let to_topic = work.task.to_topic.clone();
        let record = match self.route_copy(message, replay, to_topic.as_deref(), now) {
            Ok(Some(record)) => record,
            Ok(None) => return Step::Wait,
            Err(why) => return Step::Stop(why),
        };
        if let Some(step) = self.take_up() {
            return step;
        }
        if self.window.outstanding() == 0 {
            self.heard_at = now;
        }
        let topic: Arc<str> = Arc::from(record.topic.as_str());
        let token = Token(COPY | self.lasting.replay_slot);
        match self.publisher.enqueue(token, record) {
            Ok(()) => {
                self.alone = alone;
                self.window.beside_published();
                self.lasting.replay_slot += 1;
                if let Some(work) = &mut self.replay.work {
                    let bytes = message.cost_bytes();
                    let (seq, id) = (message.seq, message.id);
                    work.slots.push_back(Slot::Published(Published {
                        seq,
                        id,
                        topic,
                        bytes,
                        since: now,
                        alone,
                    }));
                    work.outstanding += 1;
                    work.outstanding_bytes += bytes;
                    work.paced(now, is_beside_live);
                }
                Step::Published
            }
            Err(EnqueueError::Full(_)) => {
                self.full = self.window.outstanding() > 0;
                Step::Wait
            }
            Err(EnqueueError::Refused(refusal)) => Step::Stop(refusal.to_string()),
            Err(EnqueueError::Fault(error)) => {
                self.not_enqueued(&error);
                Step::Wait
            }
        }
    }

    /// A copy would be handed over now. What must be done first, if anything.
    fn take_up(&mut self) -> Option<Step> {
        let work = self.replay.work.as_mut()?;
        if !work.is_noted {
            work.is_to_be_noted = true;
            return Some(Step::Wait);
        }
        let relays = work.task.in_vain;
        (relays >= IN_VAIN_MAX).then(|| {
            Step::Stop(format!("{relays} relays ended without a word while they published from here on"))
        })
    }

    /// The record, if it is known where it goes. Where an operator sends copies elsewhere, the partition that an intent names means
    /// nothing, and neither does what the configuration says of the topic that it names.
    fn route_copy(
        &mut self,
        message: &Message,
        replay: i64,
        to_topic: Option<&str>,
        now: Instant,
    ) -> Result<Option<Record>, String> {
        let taken_at = self.replay.work.as_ref().map(|work| work.taken_at);
        let destination = self.lasting.topics.destination(&message.topic);
        let mut copy = message.clone();
        match (to_topic, &destination.refusal) {
            (Some(topic), _) => {
                topic.clone_into(&mut copy.topic);
                copy.partition = None;
            }
            (None, Some(refusal)) => return Err(refusal.to_string()),
            (None, None) => copy.topic = destination.topic.to_string(),
        }
        let info = match self.lasting.topics.leave(&copy.topic) {
            Leave::Write(info) => info,
            // An operator resumes a replay when the topic was created: what was answered before says nothing.
            Leave::Hold(_) if self.lasting.topics.doubt(&copy.topic, now, taken_at) => {
                self.ask_for_topics();
                return Ok(None);
            }
            Leave::Hold(reason) => return Err(format!("topic {}: {}", copy.topic, reason.as_str())),
            Leave::Ask => {
                self.ask_for_topics();
                return Ok(None);
            }
        };
        match replayed(&copy, replay, info, &destination.route.header_aliases) {
            Ok(record) => Ok(Some(record)),
            Err(refusal) => {
                let rests_on_topic =
                    matches!(refusal, Refusal::TooLarge { .. } | Refusal::NoSuchPartition { .. });
                if rests_on_topic && self.lasting.topics.doubt(&copy.topic, now, taken_at) {
                    self.ask_for_topics();
                    return Ok(None);
                }
                Err(refusal.to_string())
            }
        }
    }

    /// The answer to a copy; `None`: it is about something else. Whether a broker has acknowledged it.
    pub(crate) fn replay_reported(
        &mut self,
        token: Token,
        result: &Result<Receipt, DeliveryError>,
        now: Instant,
    ) -> Option<bool> {
        if token.0 & COPY == 0 {
            return None;
        }
        let slot = self.replay.work.as_mut().and_then(|work| {
            let index = usize::try_from((token.0 & !COPY).checked_sub(work.first)?).ok()?;
            work.slots.get_mut(index).filter(|slot| matches!(slot, Slot::Published(_)))
        });
        // One of an earlier life.
        let Some(slot) = slot else { return Some(false) };
        let failed = match slot {
            Slot::Published(published) => Slot::Failed(published.seq),
            Slot::Acknowledged { .. } | Slot::Failed(_) | Slot::Reached(_) => return Some(false),
        };
        let Slot::Published(published) = std::mem::replace(slot, failed) else { return Some(false) };
        if let Ok(receipt) = result {
            *slot = Slot::Acknowledged {
                entry: ReceiptEntry {
                    seq: published.seq,
                    topic: published.topic.to_string(),
                    receipt: *receipt,
                    acknowledged_ms_before: 0,
                },
                at: now,
            };
        }
        self.window.beside_reported();
        self.alone = false;
        if let Some(work) = &mut self.replay.work {
            work.outstanding -= 1;
            work.outstanding_bytes -= published.bytes;
            if result.is_ok() && work.accused == Some(published.seq) {
                work.accused = None;
            }
        }
        match result {
            Ok(receipt) => {
                self.observer.observe(&Event::Replayed { topic: &published.topic });
                tracing::trace!(target: "outboxd::replay", seq = published.seq.0, message_id = %published.id,
                    topic = &*published.topic, partition = receipt.partition, offset = receipt.offset,
                    "copy is acknowledged");
            }
            Err(error) => self.copy_failed(published, error),
        }
        Some(result.is_ok())
    }

    fn copy_failed(&mut self, published: Published, error: &DeliveryError) {
        let Published { seq, id, topic, alone, .. } = published;
        // As if it were the last attempt: what is no outage and happens to it alone is its own.
        let verdict = classify(error.fault, alone, 0, 1);
        tracing::debug!(target: "outboxd::classify", seq = seq.0, message_id = %id, topic = &*topic,
            error = error.code, ?verdict, "copy of a replay failed");
        match verdict {
            Verdict::Outage => {
                self.kafka_is_out(&error.code);
                self.rewind_when_quiet(true, false);
            }
            Verdict::OutageOfProducer => {
                self.kafka_is_out(&error.code);
                self.rewind_when_quiet(true, true);
            }
            Verdict::TryAlone | Verdict::Retry => {
                if let Some(work) = &mut self.replay.work {
                    let was_slow = work.slow_to.is_some_and(|slow_to| seq <= slow_to);
                    work.accused = work.accused.or(was_slow.then_some(seq));
                    work.slow_to = work.slow_to.max(Some(seq));
                    self.lasting.replay_slow_to = work.slow_to.map(|seq| (work.task.replay, seq));
                    work.turn_to(Mood::Anew);
                }
            }
            Verdict::HoldTopic(reason) => {
                let random = self.lasting.rng.random();
                self.lasting.topics.hold(&topic, reason, Instant::now(), random);
                self.stop_replay(ReplayStop {
                    seq,
                    id,
                    error: format!("topic {topic}: {}", reason.as_str()),
                });
            }
            Verdict::Park(_) => {
                self.stop_replay(ReplayStop { seq, id, error: format!("topic {topic}: {}", error.code) });
            }
            // Only an acknowledgement brings it, and that is no failure.
            Verdict::Dispatched(_) => {}
        }
    }

    fn stop_replay(&mut self, stop: ReplayStop) {
        if let Some(work) = &mut self.replay.work {
            // The first one in the order of the replay is the one that keeps it.
            match &mut work.mood {
                Mood::Stopping(known) if known.seq <= stop.seq => {}
                // Somebody wants it to rest; if it goes on, what stops it comes again.
                Mood::Leaving => {}
                mood => *mood = Mood::Stopping(stop),
            }
            work.waiting.clear();
        }
    }

    /// Writes down how far the replay is, if it is time to.
    pub(crate) fn record_replay(&mut self) {
        if let Some(work) = &mut self.replay.work {
            work.look_how_far();
            work.look_whether_the_stop_holds();
        }
        self.leave_replay();
        let now = Instant::now();
        if self.replay.recording.is_some() || now < self.replay.record_at {
            return;
        }
        let hurried = self.quiet.is_some();
        let Some(work) = &self.replay.work else { return };
        let Some(turn) = work.recordable(self.replay.overdue) else { return };
        let slots = work.ready;
        let is_due =
            now.saturating_duration_since(work.recorded_at) >= RECORD_EVERY || slots >= RECORD_COPIES;
        let must =
            hurried || is_due || !work.is_noted || turn != ReplayTurn::GoesOn || work.mood != Mood::GoesOn;
        if !must {
            return;
        }
        let progress = ReplayProgress {
            term: self.term,
            replay: work.task.replay,
            before: work.pos,
            after: work.reached,
            receipts: work.receipts(slots, now),
            turn,
        };
        self.replay.recording = Some((slots, work.reached));
        let outbox = Arc::clone(self.outbox);
        self.replay
            .calls
            .spawn(async move { ReplayAnswer::Recorded(outbox.replay_progress(&progress).await) });
    }

    fn recorded(&mut self, slots: usize, place: Seq, state: Option<ReplayState>) {
        self.replay.has_failed = false;
        let Some(work) = &mut self.replay.work else { return };
        let Some(state) = state else {
            tracing::info!(target: "outboxd::replay", replay = work.task.replay,
                "the replay does not stand where this relay thought; looking again");
            // Nothing of it can be written down any more.
            work.mood = Mood::Leaving;
            work.waiting.clear();
            work.ready = 0;
            for slot in work.slots.iter_mut().filter(|slot| !matches!(slot, Slot::Published(_))) {
                *slot = Slot::Failed(place);
            }
            return;
        };
        work.pos = place;
        work.slots.drain(..slots);
        work.ready -= slots;
        work.is_noted = true;
        work.first += slots as u64;
        work.recorded_at = Instant::now();
        let (replay, pos) = (work.task.replay, work.pos.0);
        match state {
            ReplayState::Running => {}
            ReplayState::Done => {
                tracing::info!(target: "outboxd::replay", replay, pos, "a replay is done");
                self.replay.forget();
            }
            ReplayState::Stopped => {
                if let Mood::Stopping(ReplayStop { seq, id, error }) = &work.mood {
                    tracing::error!(target: "outboxd::replay", replay, pos, seq = seq.0, message_id = %id, error,
                        "a replay is stopped: an operator must resume or cancel it");
                }
                self.replay.forget();
            }
            ReplayState::Paused | ReplayState::Cancelled => {
                tracing::info!(target: "outboxd::replay", replay, pos, state = state.as_str(), "a replay rests");
                // Also of one that was to stop: nobody waits for that any more.
                work.mood = Mood::Leaving;
                work.waiting.clear();
                if self.replay.overdue {
                    self.replay.forget();
                }
            }
        }
    }

    /// Lets go of a replay that is to be left, or begun anew, once what is out is known and written down.
    fn leave_replay(&mut self) {
        let is_at_rest = self.replay.recording.is_none();
        let Some(work) = &mut self.replay.work else { return };
        if !is_at_rest || work.outstanding > 0 || work.ready > 0 {
            return;
        }
        match work.mood {
            Mood::GoesOn | Mood::Stopping(_) => {}
            Mood::Leaving => self.replay.forget(),
            Mood::Anew => {
                work.slots.clear();
                work.ready = 0;
                work.reached = work.pos;
                work.first = self.lasting.replay_slot;
                work.read_to = work.pos;
                work.mood = Mood::GoesOn;
            }
        }
    }

    /// Copies that are not acknowledged although Kafka answers: a topic without a leader must keep neither live messages that
    /// go alone nor the end of the run waiting.
    pub(crate) fn give_overdue_replay_up(&mut self) {
        let is_out = self.lasting.kafka_out_since.is_some() || self.is_silent(Instant::now());
        if self.quiet.is_some() || is_out {
            return;
        }
        let slots = self.replay.work.iter().flat_map(|work| &work.slots);
        let overdue = slots.filter_map(|slot| match slot {
            Slot::Published(published) => Some(published),
            Slot::Acknowledged { .. } | Slot::Failed(_) | Slot::Reached(_) => None,
        });
        let overdue = overdue
            .filter(|published| self.has_answered_since(published.since))
            .map(|published| ReplayStop {
                seq: published.seq,
                id: published.id,
                error: format!("topic {} does not acknowledge it in time", published.topic),
            })
            .next();
        if let Some(stop) = overdue {
            self.stop_replay(stop);
            self.replay.overdue = true;
            // The client cannot be told to forget some records, so it is made anew.
            self.rewind_when_quiet(false, true);
        }
    }
}
