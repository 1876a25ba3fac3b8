//! Hands messages to the client in the order in which they were read, and stops where one must wait.
//!
//! A message is held here, before it is published, if its topic cannot be written to or its key is busy, and parked if it is
//! refused for its own sake: nothing of its key has been published after it then.

use std::sync::Arc;

use outboxd_core::{
    Hold, HoldReason, HoldState, KeyHash, Message, OnRefused, Record, Refusal, Scheduled, Verdict, classify,
    route,
};
use tokio::time::Instant;
use tracing::field::display;

use crate::attempt::{Answer, Attempt, Followed, ended};
use crate::caution::Pace;
use crate::dead_letter::Letter;
use crate::observe::{Event, Outcome};
use crate::outbox::Outbox;
use crate::pipeline::{Pipeline, Quiet, Waiting};
use crate::publisher::{EnqueueError, Publisher, Token, TopicState};
use crate::topics::Leave;
use crate::window::Meta;

/// Look-ups that carry at most so many topics each.
const TOPICS_PER_LOOK_UP: usize = 1_000;

/// What becomes of the message at the front of the feed.
enum Step {
    /// Handed to the client, to be published with nothing else in flight or not.
    Published { alone: bool },
    /// Set aside without being published.
    Held(Hold),
    /// Put aside until its time.
    Scheduled(Scheduled),
    /// Cannot be decided now; it stays at the front.
    Wait,
}

impl<O: Outbox, P: Publisher> Pipeline<'_, O, P> {
    /// Publishes what waits, until something must be waited for.
    pub(crate) fn feed(&mut self) {
        if !self.cluster.verified {
            // What is to be known of their topics can be asked for meanwhile.
            if !self.feed.is_empty() {
                self.ask_for_topics();
            }
            return;
        }
        let mut published = self.publish_copies();
        while self.quiet.is_none() && !self.alone && !self.full && !self.is_kept_waiting() {
            let Some(waiting) = self.feed.pop_front() else { break };
            match self.step(&waiting) {
                Step::Published { alone } => {
                    self.alone = alone;
                    self.tried = alone.then_some(waiting.message);
                    published += 1;
                }
                Step::Held(hold) => {
                    if let Some(meta) = self.window.take_open(waiting.token) {
                        // A released message that was not handed to the client has been counted all along.
                        let counted = meta.released.is_some();
                        let message = Some(waiting.message);
                        self.set_aside(waiting.token, Aside { meta, hold, message, counted });
                        // Its copy, if there is one, waits for nothing that comes later.
                        published += self.publish_copies();
                    }
                }
                Step::Scheduled(scheduled) => self.schedule(waiting.token, scheduled),
                Step::Wait => {
                    self.feed.push_front(waiting);
                    break;
                }
            }
        }
        published += self.feed_replay();
        if published > 0 {
            self.observer.observe(&Event::Enqueued { messages: published });
        }
    }

    /// A copy is to be published with nothing else in flight.
    fn is_kept_waiting(&self) -> bool {
        self.copies.wait_alone() || self.replay.waits_alone()
    }

    fn step(&mut self, waiting: &Waiting) -> Step {
        let message = &waiting.message;
        let Some(meta) = self.window.open(waiting.token) else { return Step::Wait };
        let (released, key_hash, since) = (meta.released, meta.key_hash, meta.inserted_at);
        // Whatever its time: one path, on which a cancellation that was committed before that time is never missed.
        if message.deliver_after.is_some() && released.is_none() {
            return Step::Scheduled(Scheduled { seq: message.seq, topic: message.topic.clone(), key_hash });
        }
        let destination = Arc::clone(&meta.destination);
        let hold = |state, reason| hold(message, key_hash, state, reason, released);
        if let Some(refusal) = &destination.refusal {
            return Step::Held(self.parked(
                hold(HoldState::Parked, refusal.into()),
                refusal,
                (message, since),
            ));
        }
        let info = match self.lasting.topics.leave(&message.topic) {
            Leave::Write(info) => info,
            Leave::Hold(reason) => return Step::Held(hold(HoldState::Topic, reason)),
            Leave::Ask => {
                self.ask_for_topics();
                return Step::Wait;
            }
        };
        let waits = match released {
            None => self.held.is_busy(key_hash),
            Some(_) => self.held.is_stopped(key_hash),
        };
        if waits {
            return Step::Held(hold(HoldState::Behind, HoldReason::Behind));
        }
        let record = match route(message, info, &destination.route.header_aliases) {
            Ok(record) => record,
            Err(refusal) => {
                let rests_on_topic =
                    matches!(refusal, Refusal::TooLarge { .. } | Refusal::NoSuchPartition { .. });
                let released_at = released.and(self.held.released_at);
                if rests_on_topic && self.lasting.topics.doubt(&message.topic, Instant::now(), released_at) {
                    self.ask_for_topics();
                    return Step::Wait;
                }
                let parked = hold(HoldState::Parked, (&refusal).into());
                return Step::Held(self.parked(parked, &refusal, (message, since)));
            }
        };
        let pace = self.caution.pace(message.seq, released);
        let alone = match pace {
            Pace::Never(trials) => {
                return Step::Held(self.crashed(hold(HoldState::Parked, HoldReason::CrashesRelay), trials));
            }
            // Noted while the answers of earlier messages come in.
            Pace::Alone { noted: false } => return Step::Wait,
            Pace::Alone { noted: true } => true,
            Pace::Free => self.lasting.suspects.contains(&message.seq),
        };
        if alone && self.window.outstanding() > 0 {
            return Step::Wait;
        }
        self.enqueue(waiting, record, pace, alone)
    }

    /// Hands the record of the message at the front to the client.
    fn enqueue(&mut self, waiting: &Waiting, record: Record, pace: Pace, alone: bool) -> Step {
        let message = &waiting.message;
        let Some(meta) = self.window.open(waiting.token) else { return Step::Wait };
        let (released, key_hash, since) = (meta.released, meta.key_hash, meta.inserted_at);
        if self.window.outstanding() == 0 {
            // Silence is measured from here: nothing was owed before.
            self.heard_at = Instant::now();
        }
        match self.publisher.enqueue(waiting.token, record) {
            Ok(()) => {
                let followed = self.follow(message, released, since);
                self.window.published(waiting.token, alone, followed);
                if matches!(pace, Pace::Alone { .. }) {
                    self.caution.handed_over(Instant::now());
                }
                if released == Some(0) {
                    // In its order with the client: newer messages of its key may follow.
                    self.held.free(key_hash);
                }
                Step::Published { alone }
            }
            Err(EnqueueError::Full(_)) => {
                self.full = self.window.outstanding() > 0;
                Step::Wait
            }
            Err(EnqueueError::Refused(refusal)) => {
                let parked = hold(message, key_hash, HoldState::Parked, (&refusal).into(), released);
                Step::Held(self.parked(parked, &refusal, (message, since)))
            }
            Err(EnqueueError::Fault(error)) => {
                ended(self.follow(message, released, since), Answer::Failed(&error, Outcome::Outage));
                self.not_enqueued(&error);
                Step::Wait
            }
        }
    }

    /// The client could not take the record: an outage, whatever the fault, because nothing was sent.
    pub(crate) fn not_enqueued(&mut self, error: &outboxd_core::DeliveryError) {
        let renew = matches!(classify(error.fault, true, 0, u32::MAX), Verdict::OutageOfProducer);
        self.kafka_is_out(&error.code);
        self.quiet = Some((Quiet::Rewind { pause: true, renew }, Instant::now()));
    }

    /// Offers an attempt to the observer.
    fn follow(&self, message: &Message, released: Option<u32>, waited_since: Instant) -> Followed {
        self.observer.attempt(&Attempt {
            message,
            topic: &message.topic,
            is_dead_letter: false,
            attempts: released.unwrap_or(0),
            waited_since,
        })
    }

    fn parked(&self, mut hold: Hold, refusal: &Refusal, (message, since): (&Message, Instant)) -> Hold {
        ended(self.follow(message, Some(hold.attempts), since), Answer::Refused(refusal));
        hold.error = Some(refusal.to_string());
        hold.attempts += 1;
        self.observer.observe(&Event::Attempt { outcome: Outcome::Parked, messages: 1 });
        hold
    }

    /// Attempts of it have ended the process.
    fn crashed(&mut self, mut hold: Hold, trials: u32) -> Hold {
        self.caution.parked(hold.seq);
        hold.error = Some(format!("{trials} relays ended without a word while they published it alone"));
        hold.attempts += trials;
        self.observer.observe(&Event::Attempt { outcome: Outcome::Parked, messages: 1 });
        hold
    }

    /// Gives a message its verdict: held. Its key is busy from now on, unless it is parked and its key goes on without it.
    pub(crate) fn set_aside(&mut self, token: Token, aside: Aside) {
        let Aside { meta, mut hold, message, counted } = aside;
        let parked = hold.state == HoldState::Parked;
        if parked && meta.destination.route.on_refused == OnRefused::Skip {
            hold.key_hash = None;
        }
        match (counted, hold.key_hash) {
            (true, Some(_)) => {}
            (true, None) => self.held.skip(meta.key_hash),
            (false, key_hash) => self.held.hold(key_hash),
        }
        if meta.released.is_some() {
            self.held.stop(hold.key_hash);
        }
        if parked && meta.destination.route.dead_letter_of(meta.topic()).is_some() {
            match message {
                // A copy would end the process as the message does.
                _ if hold.reason == HoldReason::CrashesRelay => {
                    self.not_copied(&meta, "a relay that publishes the message ends");
                }
                _ if self.lasting.uncopied.contains(&meta.seq) => {
                    self.not_copied(&meta, "the dead-letter topic did not acknowledge it in time");
                }
                Some(message) => {
                    // Its attempt is finished when the copy is: either may end the process.
                    let alone = self.caution.is_cautious();
                    self.window.copying(token);
                    self.copies.push(token, Letter::new(meta, message, hold, alone));
                    return;
                }
                None => self.not_copied(&meta, "the message is not in memory any more"),
            }
        }
        self.caution.decided(hold.seq);
        self.held_is_told(&meta, &hold);
        self.window.held(token, hold);
    }

    /// Tells of a hold that is decided.
    pub(crate) fn held_is_told(&mut self, meta: &Meta, hold: &Hold) {
        let parked = hold.state == HoldState::Parked;
        self.observer.observe(&Event::Held { reason: hold.reason, parked });
        if parked && meta.key_hash.is_some() && hold.key_hash.is_none() {
            self.observer.observe(&Event::Skipped);
        }
        log_hold(meta, hold);
        self.lasting.suspects.remove(&meta.seq);
        self.lasting.uncopied.remove(&meta.seq);
    }

    /// Gives a message its verdict: scheduled. It blocks nobody.
    fn schedule(&mut self, token: Token, scheduled: Scheduled) {
        self.observer.observe(&Event::Scheduled);
        self.held.schedule();
        if let Some(meta) = self.window.open(token) {
            tracing::debug!(target: "outboxd::held", seq = meta.seq.0, message_id = %meta.id,
                correlation_id = meta.correlation_id, topic = meta.topic(), "message is scheduled");
        }
        self.window.scheduled(token, scheduled);
    }

    pub(crate) fn ask_for_topics(&mut self) {
        if self.look_up_at.is_none() {
            let unknown = self.lasting.topics.ask_unknown();
            self.look_up(&unknown);
        }
    }

    pub(crate) fn look_up(&mut self, topics: &[String]) {
        for some in topics.chunks(TOPICS_PER_LOOK_UP) {
            self.look_ups.spawn(self.publisher.look_up(some.to_vec()));
        }
    }

    /// Takes look-ups in. Topics that nothing is known of yet are asked for again after a pause.
    pub(crate) fn learn_topics(&mut self, answers: Vec<(String, TopicState)>) {
        let now = Instant::now();
        for (topic, state) in answers {
            let random = rand::RngExt::random(&mut self.lasting.rng);
            let learnt = self.lasting.topics.learn(&topic, &state, now, random);
            if let Some((had, has)) = learnt.partitions {
                self.observer.observe(&Event::PartitionsChanged);
                tracing::warn!(target: "outboxd::publish", topic, partitions_before = had, partitions = has,
                    "the topic's number of partitions has changed: keys are placed anew, and their order is not kept across the change");
            }
            match &state {
                TopicState::Unreachable(error) => {
                    let pause = self.look_up_backoff.next(random);
                    self.look_up_at = Some(now + pause);
                    self.kafka_is_out(&error.code);
                }
                TopicState::Writable(_) | TopicState::Held(_) => {
                    self.look_up_backoff.reset();
                    if self.window.outstanding() == 0 || self.only_the_beside_is_out() {
                        self.kafka_answers();
                    }
                }
            }
            match &state {
                TopicState::Held(reason) if learnt.turned => tracing::error!(target: "outboxd::publish",
                    topic, reason = reason.as_str(), "topic cannot be written to; its messages are held"),
                TopicState::Writable(_) if learnt.turned => {
                    tracing::info!(target: "outboxd::publish", topic, "topic can be written to again");
                    self.held_at = now;
                }
                _ => {}
            }
        }
        if self.publisher.must_renew() && self.quiet.is_none() {
            self.quiet = Some((Quiet::Renew, now));
        }
    }
}

/// A message that is to be set aside.
#[derive(Debug)]
pub(crate) struct Aside {
    pub(crate) meta: Meta,
    pub(crate) hold: Hold,
    /// The message itself, if it is in memory.
    pub(crate) message: Option<Message>,
    /// Whether its key counts it already.
    pub(crate) counted: bool,
}

/// A hold of a message that was not published now. Attempts charged earlier stay charged.
fn hold(
    message: &Message,
    key_hash: Option<KeyHash>,
    state: HoldState,
    reason: HoldReason,
    released: Option<u32>,
) -> Hold {
    Hold {
        seq: message.seq,
        topic: message.topic.clone(),
        key_hash,
        state,
        reason,
        error: None,
        attempts: released.unwrap_or(0),
        due_in: std::time::Duration::ZERO,
        dead_letter: None,
    }
}

fn log_hold(meta: &Meta, hold: &Hold) {
    let (seq, message_id, correlation_id) = (meta.seq.0, &meta.id, &meta.correlation_id);
    let (topic, reason) = (meta.topic(), hold.reason.as_str());
    let (key_hash, key) = (hold.key_hash.map(display), meta.key_shown.as_deref());
    let attempts = hold.attempts;
    match hold.state {
        HoldState::Parked => {
            tracing::error!(target: "outboxd::held", seq, %message_id, correlation_id, topic, key_hash, key, reason, attempts,
                error = hold.error, dead_letter = hold.dead_letter, "message is parked: an operator must retry or discard it");
        }
        // An attempt was charged: what becomes of this message is worth a line each time.
        HoldState::Retry => {
            let due_in_ms = u64::try_from(hold.due_in.as_millis()).unwrap_or(u64::MAX);
            tracing::info!(target: "outboxd::held", seq, %message_id, correlation_id, topic, key_hash, key, reason, attempts,
                error = hold.error, due_in_ms, "message is held and will be tried again");
        }
        HoldState::Topic | HoldState::Behind => {
            tracing::debug!(target: "outboxd::held", seq, %message_id, correlation_id, topic, key_hash, key, reason, attempts,
                error = hold.error, "message is held");
        }
    }
}
