//! Copies of parked messages, for topics whose route names a dead-letter topic.
//!
//! A parked message keeps its place in the window undecided until its copy is acknowledged; only then is its hold settled, with
//! the place of the copy. So what is parked is copied at least once, and what a crash or an outage interrupts is parked and copied
//! again. The row stays the record. A copy that cannot be written for its own sake, or that is not acknowledged while everything else is,
//! must keep nothing back: the message is parked without it, loudly.
//!
//! Copies take no part in any key's order: they go out as soon as something is published, beside the messages.

use std::collections::{BTreeSet, HashMap, VecDeque};

use outboxd_core::record::{DeadLetter, dead_letter};
use outboxd_core::{DeliveryError, Hold, Message, Receipt, Refusal, Verdict, classify};
use rand::RngExt;
use time::OffsetDateTime;
use tokio::time::Instant;

use crate::attempt::{Answer, Attempt, Followed, ended};
use crate::caution::Pace;
use crate::observe::{Event, Outcome};
use crate::outbox::Outbox;
use crate::pipeline::Pipeline;
use crate::publisher::{EnqueueError, Publisher, Token};
use crate::topics::Leave;
use crate::window::Meta;

/// A parked message that is to be copied.
#[derive(Debug)]
pub(crate) struct Letter {
    meta: Meta,
    message: Message,
    hold: Hold,
    /// By the database's clock.
    parked_at: OffsetDateTime,
    since: Instant,
    /// With nothing else in flight: it failed in company, or the run is cautious.
    alone: bool,
    /// Whoever follows the copy that is with the client.
    followed: Followed,
}

impl Letter {
    pub(crate) fn new(meta: Meta, message: Message, hold: Hold, alone: bool) -> Self {
        let since = Instant::now();
        // Its age, by the database's clock when it was read, counts from here.
        let from = message.deliver_after.map_or(message.created_at, |after| after.max(message.created_at));
        let age =
            time::Duration::try_from(since.saturating_duration_since(meta.inserted_at)).unwrap_or_default();
        let parked_at = from.checked_add(age).unwrap_or(from);
        Self { meta, message, hold, parked_at, since, alone, followed: None }
    }

    fn topic(&self) -> &str {
        self.meta.destination.route.dead_letter.as_deref().unwrap_or_default()
    }
}

/// Copies on their way.
#[derive(Debug, Default)]
pub(crate) struct Copies {
    waiting: VecDeque<(Token, Letter)>,
    published: HashMap<Token, Letter>,
}

impl Copies {
    pub(crate) fn push(&mut self, token: Token, letter: Letter) {
        self.waiting.push_back((token, letter));
    }

    /// Whether nothing else may be published until the first copy is.
    pub(crate) fn wait_alone(&self) -> bool {
        self.waiting.front().is_some_and(|(_, letter)| letter.alone)
    }

    /// An outage has ended: what it cost in time is not the dead-letter topics' fault.
    pub(crate) fn wait_anew(&mut self, now: Instant) {
        for letter in self.waiting.iter_mut().map(|(_, letter)| letter).chain(self.published.values_mut()) {
            letter.since = now;
        }
    }

    /// Whether none waits and none is with the client.
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.published.is_empty()
    }

    /// How many are with the client.
    pub(crate) fn outstanding(&self) -> usize {
        self.published.len()
    }

    /// The copy that a report is about.
    pub(crate) fn reported(&mut self, token: Token) -> Option<Letter> {
        if self.published.is_empty() { None } else { self.published.remove(&token) }
    }
}

/// What became of a copy that was to be handed to the client.
enum Handed {
    Over,
    Wait(Letter),
    GivenUp(Letter, String),
}

impl<O: Outbox, P: Publisher> Pipeline<'_, O, P> {
    /// Publishes copies, until something must be waited for. How many.
    pub(crate) fn publish_copies(&mut self) -> usize {
        let mut published = 0;
        while self.quiet.is_none() && !self.alone && !self.full {
            let Some((token, letter)) = self.copies.waiting.pop_front() else { break };
            match self.hand_over(token, letter) {
                Handed::Over => published += 1,
                Handed::Wait(letter) => {
                    self.copies.waiting.push_front((token, letter));
                    break;
                }
                Handed::GivenUp(letter, why) => self.give_up(token, letter, &why),
            }
        }
        published
    }

    fn hand_over(&mut self, token: Token, mut letter: Letter) -> Handed {
        if letter.alone && self.window.outstanding() > 0 {
            return Handed::Wait(letter);
        }
        let info = match self.lasting.topics.leave(letter.topic()) {
            Leave::Write(info) => info,
            Leave::Hold(reason) => return Handed::GivenUp(letter, reason.as_str().to_owned()),
            Leave::Ask => {
                self.ask_for_topics();
                return Handed::Wait(letter);
            }
        };
        let copy = DeadLetter { topic: letter.topic(), hold: &letter.hold, at: letter.parked_at };
        let aliases = &letter.meta.destination.route.header_aliases;
        let record = match dead_letter(&letter.message, copy, info, aliases) {
            Ok(record) => record,
            Err(refusal) => {
                let may_have_changed = matches!(refusal, Refusal::TooLarge { .. });
                if may_have_changed && self.lasting.topics.doubt(letter.topic(), Instant::now(), None) {
                    self.ask_for_topics();
                    return Handed::Wait(letter);
                }
                return Handed::GivenUp(letter, refusal.to_string());
            }
        };
        if letter.alone {
            // Noted as an attempt of its message: whoever finds it knows that the message, or its copy, ended the process.
            match self.caution.pace(letter.meta.seq, Some(1)) {
                Pace::Never(_) => {
                    self.caution.parked(letter.meta.seq);
                    return Handed::GivenUp(letter, "a relay that publishes the copy ends".to_owned());
                }
                Pace::Alone { noted: false } => return Handed::Wait(letter),
                Pace::Alone { noted: true } | Pace::Free => {}
            }
        }
        if self.window.outstanding() == 0 {
            self.heard_at = Instant::now();
        }
        match self.publisher.enqueue(token, record) {
            Ok(()) => {
                letter.followed = self.observer.attempt(&Attempt {
                    message: &letter.message,
                    topic: letter.topic(),
                    is_dead_letter: true,
                    attempts: 0,
                    waited_since: letter.since,
                });
                if letter.alone {
                    self.caution.handed_over(Instant::now());
                }
                self.alone = letter.alone;
                self.window.copy_published(token);
                self.copies.published.insert(token, letter);
                Handed::Over
            }
            Err(EnqueueError::Full(_)) => {
                self.full = self.window.outstanding() > 0;
                Handed::Wait(letter)
            }
            Err(EnqueueError::Refused(refusal)) => Handed::GivenUp(letter, refusal.to_string()),
            Err(EnqueueError::Fault(error)) => {
                self.not_enqueued(&error);
                Handed::Wait(letter)
            }
        }
    }

    /// The answer to a copy. Whether a broker has acknowledged it.
    pub(crate) fn copy_reported(
        &mut self,
        token: Token,
        mut letter: Letter,
        result: Result<Receipt, DeliveryError>,
    ) -> bool {
        self.window.copy_reported(token);
        let followed = letter.followed.take();
        let error = match result {
            Ok(receipt @ Receipt { partition, offset }) => {
                ended(followed, Answer::Acknowledged(receipt));
                letter.hold.dead_letter = Some(format!("{}[{partition}]@{offset}", letter.topic()));
                self.observer.observe(&Event::DeadLettered);
                self.settle_copied(token, &letter.meta, letter.hold);
                return true;
            }
            Err(error) => error,
        };
        // As if it were the last attempt: what is not an outage and happens to it alone is its own.
        let verdict = classify(error.fault, letter.alone, 0, 1);
        ended(followed, Answer::Failed(&error, Outcome::of(&verdict)));
        let Meta { seq, id, correlation_id, .. } = &letter.meta;
        tracing::debug!(target: "outboxd::classify", seq = seq.0, message_id = %id, correlation_id, topic = letter.topic(),
            error = error.code, ?verdict, "attempt to copy a parked message failed");
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
                letter.alone = true;
                self.copies.waiting.push_front((token, letter));
            }
            Verdict::HoldTopic(reason) => {
                let random = self.lasting.rng.random();
                self.lasting.topics.hold(letter.topic(), reason, Instant::now(), random);
                self.give_up(token, letter, reason.as_str());
            }
            Verdict::Park(_) => self.give_up(token, letter, &error.code),
            // Only an acknowledgement brings it, and that is no failure.
            Verdict::Dispatched(_) => {}
        }
        false
    }

    /// Nothing but copies is with the client, dead letters or those of a replay, so nobody else can say whether Kafka answers: it is asked
    /// about their topics. What it answers ends an outage, and then overdue copies are given up.
    pub(crate) fn ask_for_silent_copies(&mut self) {
        if self.quiet.is_some() || self.look_up_at.is_some() {
            return;
        }
        let mut topics: BTreeSet<String> =
            self.copies.published.values().map(|letter| letter.topic().to_owned()).collect();
        topics.append(&mut self.replay.topics());
        let asked = self.lasting.topics.ask_about(&topics, Instant::now());
        self.look_up(&asked);
    }

    /// Whether all that is with the client are copies.
    pub(crate) fn only_the_beside_is_out(&self) -> bool {
        let beside = self.copies.outstanding() + self.replay.outstanding();
        beside > 0 && beside == self.window.outstanding()
    }

    /// Copies that are not acknowledged although Kafka answers: a dead-letter topic without a leader must not keep everything
    /// behind its message for ever.
    pub(crate) fn give_overdue_copies_up(&mut self) {
        let is_out = self.lasting.kafka_out_since.is_some() || self.is_silent(Instant::now());
        if self.quiet.is_some() || is_out {
            return;
        }
        let overdue = |letter: &Letter| self.has_answered_since(letter.since);
        let with_client: Vec<_> = self
            .copies
            .published
            .values()
            .filter(|letter| overdue(letter))
            .map(|letter| letter.meta.seq)
            .collect();
        if !with_client.is_empty() {
            // The client cannot be told to forget one record, so it is made anew; the next time these are not copied.
            self.lasting.uncopied.extend(with_client);
            self.rewind_when_quiet(false, true);
            return;
        }
        while self
            .copies
            .waiting
            .front()
            .is_some_and(|(_, letter)| letter.since.elapsed() > self.config.outage_after)
        {
            let Some((token, letter)) = self.copies.waiting.pop_front() else { break };
            self.give_up(token, letter, "nothing is known of the dead-letter topic");
        }
    }

    /// Whether Kafka has answered so long after that time that an acknowledgement from then is overdue. When it answered last before an
    /// outage says nothing: the outage is known only a while after it has begun.
    pub(crate) fn has_answered_since(&self, since: Instant) -> bool {
        self.heard_at.saturating_duration_since(since) > self.config.outage_after
    }

    fn give_up(&mut self, token: Token, letter: Letter, why: &str) {
        self.not_copied(&letter.meta, why);
        self.settle_copied(token, &letter.meta, letter.hold);
    }

    /// A message is parked without the copy that its route asks for.
    pub(crate) fn not_copied(&self, meta: &Meta, why: &str) {
        self.observer.observe(&Event::DeadLetterFailed);
        tracing::error!(target: "outboxd::held", seq = meta.seq.0, message_id = %meta.id,
            correlation_id = meta.correlation_id, topic = meta.topic(),
            dead_letter = meta.destination.route.dead_letter, error = why,
            "message is parked without a copy on its dead-letter topic");
    }

    fn settle_copied(&mut self, token: Token, meta: &Meta, hold: Hold) {
        self.caution.decided(meta.seq);
        self.held_is_told(meta, &hold);
        self.window.copied(token, hold);
    }
}
