//! Takes delivery reports in. What an error means is decided by `outboxd_core::classify` alone; this is what follows.

use outboxd_core::{
    Backoff, DeliveryError, Hold, HoldReason, HoldState, Message, Receipt, Verdict, classify,
};
use rand::RngExt;
use tokio::time::Instant;
use tracing::field::display;

use crate::attempt::{Answer, ended};
use crate::observe::{Event, Outcome};
use crate::outbox::Outbox;
use crate::pipeline::{Pipeline, Quiet};
use crate::publish::Aside;
use crate::publisher::{Publisher, Report, Token};
use crate::window::Meta;

/// A record that was not acknowledged.
struct Failure<'a> {
    meta: Meta,
    /// The message, if nothing else was in flight with it.
    tried: Option<Message>,
    error: &'a DeliveryError,
}

impl<O: Outbox, P: Publisher> Pipeline<'_, O, P> {
    pub(crate) fn classify_reports(&mut self, reports: &mut Vec<Report>) {
        let now = Instant::now();
        let (mut acknowledged, mut answered) = (0, false);
        for report in reports.drain(..) {
            if let Some(acknowledged) = self.replay_reported(report.token, &report.result, now) {
                answered |= acknowledged;
                continue;
            }
            if let Some(letter) = self.copies.reported(report.token) {
                self.alone = false;
                answered |= self.copy_reported(report.token, letter, report.result);
                continue;
            }
            let Some((mut meta, alone)) = self.window.reported(report.token) else { continue };
            self.alone = false;
            let tried = self.tried.take();
            match report.result {
                Ok(receipt) => {
                    acknowledged += 1;
                    self.caution.decided(meta.seq);
                    ended(meta.followed.take(), Answer::Acknowledged(receipt));
                    let age = now.saturating_duration_since(meta.inserted_at);
                    self.observer.observe(&Event::Acknowledged { topic: meta.topic(), age });
                    if meta.attempts() > 0 {
                        self.held.free(meta.key_hash);
                    }
                    if !self.lasting.suspects.is_empty() {
                        self.lasting.suspects.remove(&meta.seq);
                    }
                    log_acknowledged(&meta, receipt);
                    self.window.dispatched(report.token, meta, receipt, now);
                }
                Err(error) => self.failed(report.token, meta, alone, tried, &error),
            }
        }
        self.full = false;
        if acknowledged > 0 {
            self.caution.went_well(usize::try_from(acknowledged).unwrap_or(usize::MAX));
            self.observer.observe(&Event::Attempt { outcome: Outcome::Acknowledged, messages: acknowledged });
        }
        if acknowledged > 0 || answered {
            self.kafka_answers();
        } else {
            self.heard_at = now;
        }
    }

    fn failed(
        &mut self,
        token: Token,
        mut meta: Meta,
        alone: bool,
        tried: Option<Message>,
        error: &DeliveryError,
    ) {
        let attempts = meta.attempts();
        let followed = meta.followed.take();
        let attempts_max = meta.destination.route.attempts_max.unwrap_or(self.config.attempts_max);
        let verdict = classify(error.fault, alone, attempts, attempts_max);
        tracing::debug!(target: "outboxd::classify", seq = meta.seq.0, message_id = %meta.id,
            correlation_id = meta.correlation_id, topic = meta.topic(), key_hash = meta.key_hash.map(display),
            key = meta.key_shown.as_deref(), error = error.code, ?verdict, "attempt failed");
        if !matches!(verdict, Verdict::Park(_)) {
            self.caution.decided(meta.seq);
        }
        let outcome = Outcome::of(&verdict);
        let failure = Failure { meta, tried, error };
        match verdict {
            Verdict::Outage | Verdict::OutageOfProducer => {
                let renew = verdict == Verdict::OutageOfProducer;
                self.kafka_is_out(&error.code);
                self.rewind_when_quiet(true, renew);
            }
            Verdict::TryAlone => {
                self.lasting.suspects.insert(failure.meta.seq);
                self.observer.observe(&Event::Overtaken);
                self.rewind_when_quiet(false, false);
            }
            Verdict::HoldTopic(reason) => {
                let random = self.lasting.rng.random();
                let topic = failure.meta.topic();
                if self.lasting.topics.hold(topic, reason, Instant::now(), random) {
                    tracing::error!(target: "outboxd::classify", topic, reason = reason.as_str(),
                        message_id = %failure.meta.id, correlation_id = failure.meta.correlation_id,
                        "topic cannot be written to; its messages are held");
                }
                self.hold_reported(token, failure, HoldState::Topic, reason, attempts);
            }
            Verdict::Retry => {
                self.hold_reported(token, failure, HoldState::Retry, HoldReason::UnknownError, attempts + 1);
            }
            Verdict::Park(reason) => {
                self.hold_reported(token, failure, HoldState::Parked, reason, attempts + 1);
            }
            // Only an acknowledgement brings it, and that is no failure.
            Verdict::Dispatched(_) => {}
        }
        ended(followed, Answer::Failed(error, outcome));
        self.observer.observe(&Event::Attempt { outcome, messages: 1 });
    }

    fn hold_reported(
        &mut self,
        token: Token,
        failure: Failure<'_>,
        state: HoldState,
        reason: HoldReason,
        attempts: u32,
    ) {
        let Failure { meta, tried, error } = failure;
        let mut backoff = Backoff::new(self.config.backoff_min, self.config.backoff_max);
        let due_in =
            (0..attempts).map(|_| backoff.next(self.lasting.rng.random())).last().unwrap_or_default();
        let hold = Hold {
            seq: meta.seq,
            topic: meta.topic().to_owned(),
            key_hash: meta.key_hash,
            state,
            reason,
            error: Some(error.code.clone()),
            attempts,
            due_in,
            dead_letter: None,
        };
        self.observer.observe(&Event::Overtaken);
        // One released without a failed attempt was freed when it was handed to the client.
        let counted = meta.attempts() > 0;
        self.set_aside(token, Aside { meta, hold, message: tried, counted });
    }

    /// Stops feeding. A wish for a pause or a new client is never taken back by a later report.
    pub(crate) fn rewind_when_quiet(&mut self, pause: bool, renew: bool) {
        let (quiet, since) = match self.quiet {
            Some((Quiet::Rewind { pause: paused, renew: renewed }, since)) => {
                (Quiet::Rewind { pause: pause || paused, renew: renew || renewed }, since)
            }
            Some((Quiet::Drain, since)) => (Quiet::Drain, since),
            Some((Quiet::Renew, _)) | None => (Quiet::Rewind { pause, renew }, Instant::now()),
        };
        self.quiet = Some((quiet, since));
        self.feed.clear();
    }
}

/// One that had failed before is worth a line: it ends the story that began with an error.
fn log_acknowledged(meta: &Meta, receipt: Receipt) {
    let (seq, message_id, correlation_id, topic) = (meta.seq.0, &meta.id, &meta.correlation_id, meta.topic());
    let (key_hash, key) = (meta.key_hash.map(display), meta.key_shown.as_deref());
    let Receipt { partition, offset } = receipt;
    match meta.attempts() {
        0 => {
            tracing::trace!(target: "outboxd::publish", seq, %message_id, correlation_id, topic, key_hash, key, partition,
                offset, "message is acknowledged");
        }
        failed => {
            tracing::info!(target: "outboxd::publish", seq, %message_id, correlation_id, topic, key_hash, key, partition, offset,
                failed, "message is acknowledged after attempts that failed");
        }
    }
}
