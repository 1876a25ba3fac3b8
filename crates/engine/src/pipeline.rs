//! One run from the settled cursor: pages in, records out, reports in, settles out.
//!
//! All state belongs to the task that loops in [`Pipeline::run`]. Everything that takes time runs beside it in a `JoinSet`
//! and answers through the `select!`, whose branches are all cancel safe: channel receives, `join_next`, timers and
//! [`Publisher::reports`] (by its contract). A run ends with an [`End`]; whoever called decides what follows.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use outboxd_core::{Cursor, KeyHash, Message};
use rand::rngs::StdRng;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::caution::Caution;
use crate::cluster::{ClusterAnswer, ClusterCheck};
use crate::config::RelayConfig;
use crate::dead_letter::Copies;
use crate::held::HeldBook;
use crate::observe::{Event, Observe, Side};
use crate::outbox::{HeldSignal, Outbox, OutboxError, Release, Start, Term};
use crate::publisher::{Publisher, PublisherStats, Report, Token, TopicState};
use crate::read::{self, CaughtUp, ReadSettings, Readable};
use crate::replay::Replaying;
use crate::topics::Topics;
use crate::window::{Duplicates, Meta, Window};

/// How often the loop looks at its clocks.
const TICK: Duration = Duration::from_millis(100);

/// Why a run ended.
#[derive(Debug)]
pub(crate) enum End {
    /// Asked to; everything that could be settled is.
    Drained,
    /// Go back to the settled cursor. `pause`: wait first; `renew`: with a new client.
    Rewind { pause: bool, renew: bool },
    /// The term is over.
    Lost(OutboxError),
}

/// What feeding has stopped for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Quiet {
    /// Rewind once every report is in.
    Rewind { pause: bool, renew: bool },
    /// Renew the client once every report is in, then go on.
    Renew,
    /// End once every report is in.
    Drain,
}

/// A message that waits to be handed to the client, in order.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) token: Token,
    pub(crate) message: Message,
}

/// What asking the outbox about held messages brought.
#[derive(Debug)]
pub(crate) enum HeldAnswer {
    Signal(HeldSignal),
    Release(Release),
}

/// What outlives a run: it belongs to the relay.
#[derive(Debug)]
pub(crate) struct Lasting {
    pub(crate) topics: Topics,
    /// Messages that failed in company and must be tried alone.
    pub(crate) suspects: BTreeSet<outboxd_core::Seq>,
    /// Messages whose copy a dead-letter topic did not acknowledge in time: parked without one the next time.
    pub(crate) uncopied: BTreeSet<outboxd_core::Seq>,
    pub(crate) rng: StdRng,
    /// The next frame's number.
    pub(crate) frame: u64,
    /// Since when Kafka does not answer.
    pub(crate) kafka_out_since: Option<Instant>,
    /// Since when the database does not answer.
    pub(crate) database_out_since: Option<Instant>,
    /// The term has read a page. Shared with the task that reads.
    pub(crate) page_read: Arc<AtomicBool>,
    /// The term has settled something.
    pub(crate) has_settled: bool,
    /// The sweep has held messages. Shared with the task that sweeps.
    pub(crate) stranded: Arc<AtomicBool>,
    /// A replay is to be worked on. Shared with the task that measures.
    pub(crate) replay_wanted: Arc<AtomicBool>,
    /// The next copy's number.
    pub(crate) replay_slot: u64,
    /// The replay of which a copy failed in company, and up to where its copies go one at a time.
    pub(crate) replay_slow_to: Option<(i64, outboxd_core::Seq)>,
    /// The message that this process has tried last: its attempts have not ended the process.
    pub(crate) tried: Option<outboxd_core::Seq>,
}

impl Lasting {
    pub(crate) fn begin_term(&mut self) {
        self.page_read = Arc::default();
        self.has_settled = false;
        self.stranded = Arc::default();
        self.replay_wanted = Arc::default();
    }

    /// What a relay without the lead says of Kafka and of messages: nothing.
    pub(crate) fn end_term(&mut self, observer: &dyn Observe) {
        if let Some(since) = self.kafka_out_since.take() {
            observer.observe(&Event::OutageEnded { side: Side::Kafka, lasted: since.elapsed() });
        }
        observer.observe(&Event::InFlight { messages: 0, bytes: 0, publisher: PublisherStats::default() });
    }

    pub(crate) fn database_answers(&mut self, observer: &dyn Observe) {
        if let Some(since) = self.database_out_since.take() {
            let lasted = since.elapsed();
            tracing::info!(target: "outboxd::lead", lasted_s = lasted.as_secs_f64(), "the database is available again");
            observer.observe(&Event::OutageEnded { side: Side::Database, lasted });
            observer.observe(&Event::Reconnected { side: Side::Database });
        }
    }
}

pub(crate) struct Pipeline<'r, O: Outbox, P: Publisher> {
    pub(crate) outbox: &'r Arc<O>,
    pub(crate) publisher: &'r mut P,
    pub(crate) config: &'r RelayConfig,
    pub(crate) observer: &'r Arc<dyn Observe>,
    pub(crate) lasting: &'r mut Lasting,
    pub(crate) term: Term,
    pub(crate) settled: Cursor,
    pub(crate) window: Window,
    pub(crate) feed: VecDeque<Waiting>,
    pub(crate) held: HeldBook,
    pub(crate) caution: Caution,
    /// Pages taken, and what the task that reads says of them.
    pub(crate) taken: u64,
    pub(crate) caught_up: Arc<CaughtUp>,
    pub(crate) quiet: Option<(Quiet, Instant)>,
    /// A record that is published with nothing else in flight.
    pub(crate) alone: bool,
    /// The message of that record: the only kind that is parked for what a report says, and a copy needs its payload.
    pub(crate) tried: Option<Message>,
    pub(crate) copies: Copies,
    /// The client's queue is full: wait for a report.
    pub(crate) full: bool,
    pub(crate) settle: crate::settle::Settler,
    pub(crate) cluster: ClusterCheck,
    pub(crate) look_ups: JoinSet<Vec<(String, TopicState)>>,
    pub(crate) look_up_at: Option<Instant>,
    pub(crate) look_up_backoff: outboxd_core::Backoff,
    pub(crate) held_calls: JoinSet<Result<HeldAnswer, OutboxError>>,
    pub(crate) held_at: Instant,
    pub(crate) replay: Replaying,
    pub(crate) heard_at: Instant,
}

impl<'r, O: Outbox, P: Publisher> Pipeline<'r, O, P> {
    pub(crate) fn new(
        outbox: &'r Arc<O>,
        publisher: &'r mut P,
        config: &'r RelayConfig,
        observer: &'r Arc<dyn Observe>,
        lasting: &'r mut Lasting,
        (term, start): (Term, Start),
    ) -> Self {
        let now = Instant::now();
        lasting.topics.forget_questions();
        let enough = usize::try_from(config.page.messages).unwrap_or(usize::MAX);
        let caution = Caution::new(&start, lasting.tried, enough);
        if caution.is_cautious() {
            tracing::info!(target: "outboxd::publish", terms_unsettled = start.terms_unsettled,
                seq = start.trial.map(|trial| trial.seq.0), trials = start.trial.map(|trial| trial.trials),
                "earlier relays ended without a word; publishing one message at a time until it is known which one that is");
        }
        Self {
            outbox,
            publisher,
            config,
            observer,
            window: Window::starting_at(lasting.frame),
            lasting,
            term,
            held: HeldBook::new(&start.held, start.actions),
            caution,
            taken: 0,
            caught_up: Arc::default(),
            settled: start.cursor,
            feed: VecDeque::new(),
            quiet: None,
            alone: false,
            tried: None,
            copies: Copies::default(),
            full: false,
            settle: crate::settle::Settler::default(),
            cluster: ClusterCheck::new(
                start.kafka_cluster,
                outboxd_core::Backoff::new(config.backoff_min, config.backoff_max),
            ),
            look_ups: JoinSet::new(),
            look_up_at: None,
            look_up_backoff: outboxd_core::Backoff::new(config.backoff_min, config.backoff_max),
            held_calls: JoinSet::new(),
            held_at: now,
            replay: Replaying::new(now),
            heard_at: now,
        }
    }

    /// Runs until there is a reason to stop. `background` holds the term's own tasks; each of them ends only with an error.
    pub(crate) async fn run(
        mut self,
        background: &mut JoinSet<OutboxError>,
        drain: &CancellationToken,
    ) -> (End, Duplicates) {
        let mut reading = JoinSet::new();
        let mut pages =
            read::start(&mut reading, self.outbox, self.settled.clone(), self.read_settings(), self.observer);
        let end = self.turn(&mut reading, &mut pages, background, drain).await;
        reading.abort_all();
        self.lasting.frame = self.window.next_number();
        let again = self.window.possible_duplicates();
        let messages = again.messages + self.replay.unrecorded();
        if messages > 0 {
            self.observer.observe(&Event::PossibleDuplicates { messages });
        }
        (end, again)
    }

    async fn turn(
        &mut self,
        reading: &mut JoinSet<OutboxError>,
        pages: &mut mpsc::Receiver<Readable>,
        background: &mut JoinSet<OutboxError>,
        drain: &CancellationToken,
    ) -> End {
        let mut reports: Vec<Report> = Vec::new();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        loop {
            self.ask_for_cluster();
            self.feed();
            self.start_settle();
            self.ask_for_replay();
            self.record_replay();
            if let Some(end) = self.quieted().await {
                return end;
            }
            let takes_pages = self.takes_pages();
            let settle_at = self.settle_at();
            tokio::select! {
                biased;
                () = drain.cancelled(), if !self.is_draining() => {
                    // What was read and not published stays in the outbox.
                    reading.abort_all();
                    self.feed.clear();
                    self.quiet = Some((Quiet::Drain, Instant::now()));
                }
                Some(ended) = background.join_next() => return End::Lost(ended_with(ended)),
                Some(ended) = reading.join_next(), if !self.is_draining() => {
                    return End::Lost(ended_with(ended));
                }
                Some(written) = self.settle.task.join_next() => {
                    if let Err(error) = self.settle_written(written) {
                        return End::Lost(error);
                    }
                }
                // Before the reports: pages are bounded by the budget, so they cannot starve anything.
                Some(page) = pages.recv(), if takes_pages => self.take_page(page),
                () = self.publisher.reports(&mut reports), if self.window.outstanding() > 0 => {
                    self.classify_reports(&mut reports);
                }
                Some(answer) = self.cluster.calls.join_next() => {
                    let answer = answer.unwrap_or_else(|error| {
                        ClusterAnswer::Remembered(Err(OutboxError::unavailable("ask for the cluster", error)))
                    });
                    if let Err(error) = self.learn_cluster(answer) {
                        return End::Lost(error);
                    }
                }
                Some(answers) = self.look_ups.join_next() => match answers {
                    Ok(answers) => self.learn_topics(answers),
                    Err(_) => self.lasting.topics.forget_questions(),
                },
                Some(answer) = self.held_calls.join_next() => {
                    let answer = answer.unwrap_or_else(|error| {
                        Err(OutboxError::unavailable("ask for held messages", error))
                    });
                    match answer {
                        Ok(answer) => self.held_answered(answer),
                        Err(error) => return End::Lost(error),
                    }
                }
                Some(answer) = self.replay.calls.join_next() => {
                    if let Err(error) = self.replay_answered(answer) {
                        return End::Lost(error);
                    }
                }
                () = tokio::time::sleep_until(settle_at.unwrap_or_else(Instant::now)), if settle_at.is_some() => {}
                _ = tick.tick() => self.tick(),
            }
            self.hold_round();
            self.look_whether_caught_up();
        }
    }

    fn read_settings(&self) -> ReadSettings {
        ReadSettings {
            limit: self.config.page,
            in_flight_messages: self.config.in_flight_messages,
            in_flight_bytes: self.config.in_flight_bytes,
            poll_min: self.config.poll_min,
            poll_max: self.config.poll_max,
            page_read: Arc::clone(&self.lasting.page_read),
            caught_up: Arc::clone(&self.caught_up),
        }
    }

    pub(crate) fn is_draining(&self) -> bool {
        matches!(self.quiet, Some((Quiet::Drain, _)))
    }

    fn takes_pages(&self) -> bool {
        self.feed.is_empty() && self.quiet.is_none() && !self.held.pages_wait()
    }

    fn take_page(&mut self, page: Readable) {
        self.taken += 1;
        let (frame, mut messages) = page.read.page.into_parts();
        let metas = messages.iter_mut().map(|message| self.meta(message, page.read_at, None)).collect();
        let number = self.window.push_page(frame, metas, page.bytes, page.budget);
        self.queue(number, messages);
    }

    pub(crate) fn queue(&mut self, frame: u64, messages: Vec<Message>) {
        let waiting = messages.into_iter().enumerate();
        self.feed
            .extend(waiting.map(|(index, message)| Waiting { token: Window::token(frame, index), message }));
    }

    /// What is remembered of a message that enters the path. From here on its topic is the destination's: hashes of keys, held rows,
    /// look-ups and receipts speak of that one. A released message has the key that its row holds back.
    pub(crate) fn meta(
        &mut self,
        message: &mut Message,
        read_at: Instant,
        released: Option<(u32, Option<KeyHash>)>,
    ) -> Meta {
        let destination = self.lasting.topics.destination(&message.topic);
        if *message.topic != *destination.topic {
            message.topic = destination.topic.to_string();
        }
        Meta {
            seq: message.seq,
            id: message.id,
            correlation_id: message.correlation_id.clone(),
            destination,
            key_hash: released.map_or_else(|| KeyHash::of(message), |(_, key_hash)| key_hash),
            key_shown: message.key.as_deref().filter(|_| self.config.log_keys).map(Box::from),
            released: released.map(|(attempts, _)| attempts),
            inserted_at: read_at.checked_sub(message.age).unwrap_or(read_at),
            followed: None,
        }
    }

    /// An empty page was read, and everything before it is settled.
    fn look_whether_caught_up(&mut self) {
        if self.caution.is_cautious() && self.window.messages() == 0 && self.caught_up.is_at(self.taken) {
            self.caution.caught_up();
        }
    }

    fn tick(&mut self) {
        let now = Instant::now();
        self.observer.observe(&Event::Heartbeat);
        // The attempt of a message that is copied is not over when it was handed over itself.
        if self.copies.is_empty() {
            self.caution.tick(now);
        }
        if self.lasting.page_read.load(Ordering::Relaxed) {
            self.lasting.database_answers(&**self.observer);
        }
        self.observer.observe(&Event::InFlight {
            messages: self.window.messages(),
            bytes: self.window.bytes(),
            publisher: self.publisher.stats(),
        });
        let silent = self.is_silent(now);
        if self.only_the_beside_is_out() {
            // A dead-letter topic that is silent is no outage, and an outage ends although it is.
            if silent || self.lasting.kafka_out_since.is_some() {
                self.ask_for_silent_copies();
            }
        } else if silent {
            self.kafka_is_out("no broker has acknowledged anything");
        }
        if self.lasting.stranded.swap(false, Ordering::Acquire) {
            self.held.any = true;
            self.held_at = now;
        }
        self.give_overdue_copies_up();
        self.give_overdue_replay_up();
        let again = self.lasting.topics.ask_again(now);
        self.look_up(&again);
        if self.look_up_at.is_some_and(|at| at <= now) {
            self.look_up_at = None;
        }
    }

    /// Kafka owes answers and has given none for a while.
    pub(crate) fn is_silent(&self, now: Instant) -> bool {
        self.window.outstanding() > 0
            && now.saturating_duration_since(self.heard_at) > self.config.outage_after
    }

    pub(crate) fn kafka_is_out(&mut self, why: &str) {
        if self.lasting.kafka_out_since.is_none() {
            self.lasting.kafka_out_since = Some(self.heard_at);
            tracing::warn!(target: "outboxd::publish", why, "kafka is not available; waiting, nothing is lost");
            self.observer.observe(&Event::OutageBegan { side: Side::Kafka });
        }
    }

    pub(crate) fn kafka_answers(&mut self) {
        self.heard_at = Instant::now();
        if let Some(since) = self.lasting.kafka_out_since.take() {
            self.copies.wait_anew(self.heard_at);
            self.replay.wait_anew(self.heard_at);
            let lasted = self.heard_at.saturating_duration_since(since);
            tracing::info!(target: "outboxd::publish", lasted_s = lasted.as_secs_f64(), "kafka is available again");
            self.observer.observe(&Event::OutageEnded { side: Side::Kafka, lasted });
        }
    }
}

pub(crate) fn ended_with(ended: Result<OutboxError, tokio::task::JoinError>) -> OutboxError {
    ended.unwrap_or_else(|error| OutboxError::unavailable("run a task of the term", error))
}
