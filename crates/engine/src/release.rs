//! The release round: when held messages are asked for, and how they re-enter the path.

use std::sync::Arc;

use outboxd_core::{KeyHash, Message};
use tokio::time::Instant;

use crate::held::Round;
use crate::observe::Event;
use crate::outbox::{Due, Outbox, PageLimit, Release, ReleaseQuery};
use crate::pipeline::{HeldAnswer, Pipeline};
use crate::publisher::Publisher;

/// Messages released in one round.
const RELEASE_MAX: u32 = 1_000;
/// Of those, how many may have failed before: each of them stops everything else while it is tried alone.
const ALONE_MAX: usize = 16;

impl<O: Outbox, P: Publisher> Pipeline<'_, O, P> {
    /// Moves the release round on.
    pub(crate) fn hold_round(&mut self) {
        if self.quiet.is_some() {
            return;
        }
        let now = Instant::now();
        match &self.held.round {
            Round::Idle if self.held.any && now >= self.held_at => {
                self.held_at = now + self.config.held_every;
                self.held.asked(Round::Asking, self.window.holds_unsettled());
                let (outbox, topics) = (Arc::clone(self.outbox), self.lasting.topics.held());
                self.held_calls.spawn(async move { outbox.held(&topics).await.map(HeldAnswer::Signal) });
            }
            Round::Barrier { unblocked }
                if self.feed.is_empty()
                    && self.window.holds_unsettled() == 0
                    && !self.window.has_releases() =>
            {
                let query = ReleaseQuery {
                    term: self.term,
                    topics_held: self.lasting.topics.held(),
                    unblocked: unblocked.clone(),
                    limit: PageLimit { messages: RELEASE_MAX, bytes: self.config.page.bytes },
                };
                let (outbox, actions) = (Arc::clone(self.outbox), self.held.actions);
                self.held.asked(Round::Reading, self.window.holds_unsettled());
                self.held_calls.spawn(async move {
                    let release = outbox.due(&query, actions).await?;
                    Ok(HeldAnswer::Release(release))
                });
            }
            Round::Idle | Round::Asking | Round::Barrier { .. } | Round::Reading => {}
        }
    }

    pub(crate) fn held_answered(&mut self, answer: HeldAnswer) {
        match answer {
            HeldAnswer::Signal(signal) => {
                self.held.signalled(signal, self.window.holds_unsettled());
                if self.held.round == Round::Idle {
                    self.caution.held_is_quiet();
                }
            }
            HeldAnswer::Release(Release { due, change, promoted }) => {
                let counted = self.held.released(change.as_ref(), &promoted);
                if due.is_empty() && promoted.is_empty() {
                    self.caution.held_is_quiet();
                }
                if counted {
                    self.release(due);
                } else {
                    self.held_at = Instant::now();
                }
            }
        }
    }

    fn release(&mut self, due: Vec<Due>) {
        if self.quiet.is_some() {
            return;
        }
        if u32::try_from(due.len()).is_ok_and(|len| len >= RELEASE_MAX) {
            self.held_at = Instant::now();
        }
        let mut failed_before = 0;
        let (mut metas, mut messages, mut bytes) = (Vec::new(), Vec::new(), 0);
        let now = Instant::now();
        for Due { mut message, attempts, key_hash } in due {
            failed_before += usize::from(attempts > 0);
            if attempts > 0 && failed_before > ALONE_MAX {
                continue;
            }
            let meta = self.meta(&mut message, now, Some((attempts, key_hash)));
            if key_hash.is_some() && key_hash != KeyHash::of(&message) {
                // It was held under another name: the routes were changed since. Newer messages of its key did not wait for it.
                self.observer.observe(&Event::Overtaken);
            }
            metas.push(meta);
            bytes += Message::cost_bytes(&message);
            messages.push(message);
        }
        if messages.is_empty() {
            return;
        }
        self.held.released_at = Some(now);
        self.observer.observe(&Event::Released { messages: messages.len() });
        tracing::debug!(target: "outboxd::held", messages = messages.len(), "held messages are published again");
        let frame = self.window.push_release(metas, bytes);
        self.queue(frame, messages);
    }
}
