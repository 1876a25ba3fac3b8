//! Which keys are busy, and when held messages may leave.
//!
//! A key is busy while it has a held row *or* a hold that is decided and not yet a row: asking the table alone, or freeing
//! a key with its last row, would let a newer message overtake. So messages are counted per key here, up when the hold is
//! decided and down when the message is handed to the client in its order (if no attempt of it ever failed) or when it
//! is acknowledged (if one did). A message that is parked under the policy `skip` has a hold without a key, and counts for none.
//!
//! A release round stops taking pages, waits until every decided hold is a row, and only then asks which messages may
//! go. What it frees is therefore all there is, and a key under constant traffic returns to the direct path.

use std::collections::{HashMap, HashSet};

use outboxd_core::KeyHash;
use tokio::time::Instant;

use crate::outbox::{HeldChange, HeldCount, HeldSignal};

/// Where a release round stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Round {
    /// None is under way.
    #[default]
    Idle,
    /// The outbox is being asked whether one is needed.
    Asking,
    /// Pages wait until every decided hold is a row.
    Barrier { unblocked: Vec<KeyHash> },
    /// The messages are being read.
    Reading,
}

#[derive(Debug, Default)]
pub(crate) struct HeldBook {
    busy: HashMap<KeyHash, u32>,
    pub(crate) actions: i64,
    pub(crate) round: Round,
    /// Held rows may exist: worth asking.
    pub(crate) any: bool,
    /// When the last messages were released.
    pub(crate) released_at: Option<Instant>,
    /// Keys of which a released message was set aside again: what was released after it must stay behind it.
    stopped: HashSet<KeyHash>,
    /// A hold was decided since the outbox was asked: its answer does not know it.
    decided: bool,
}

impl HeldBook {
    pub(crate) fn new(held: &[HeldCount], actions: i64) -> Self {
        let mut book = Self { actions, any: true, ..Self::default() };
        book.count_again(held, actions);
        book
    }

    /// The outbox is asked something about held messages. A hold that is no row yet may be missing in the answer.
    pub(crate) fn asked(&mut self, round: Round, holds_unsettled: usize) {
        self.round = round;
        self.decided = holds_unsettled > 0;
    }

    /// Messages are released, or none; scheduled messages of these keys have become held ones. Whether what is released is
    /// counted: what is not must wait for the next round.
    pub(crate) fn released(&mut self, change: Option<&HeldChange>, promoted: &[KeyHash]) -> bool {
        self.round = Round::Idle;
        self.stopped.clear();
        // Counts that lack a hold would free its key: then they come again with the next round.
        if let Some(change) = change.filter(|_| !self.decided) {
            self.count_again(&change.held, change.actions);
            return true;
        }
        for key in promoted {
            *self.busy.entry(*key).or_insert(0) += 1;
        }
        change.is_none()
    }

    /// A released message is set aside again.
    pub(crate) fn stop(&mut self, key: Option<KeyHash>) {
        self.stopped.extend(key);
    }

    /// Whether an earlier message of the key, released with this one, was set aside again.
    pub(crate) fn is_stopped(&self, key: Option<KeyHash>) -> bool {
        key.is_some_and(|key| self.stopped.contains(&key))
    }

    fn count_again(&mut self, held: &[HeldCount], actions: i64) {
        self.actions = actions;
        self.busy = held.iter().map(|count| (count.key_hash, count.messages)).collect();
    }

    pub(crate) fn is_busy(&self, key: Option<KeyHash>) -> bool {
        key.is_some_and(|key| self.busy.contains_key(&key))
    }

    /// A message is put aside until its time: worth asking, but it blocks nobody.
    pub(crate) fn schedule(&mut self) {
        self.any = true;
        self.decided = true;
    }

    pub(crate) fn hold(&mut self, key: Option<KeyHash>) {
        self.any = true;
        self.decided = true;
        if let Some(key) = key {
            *self.busy.entry(key).or_insert(0) += 1;
        }
    }

    /// A hold of a message that was counted, and whose key goes on without it.
    pub(crate) fn skip(&mut self, key: Option<KeyHash>) {
        self.hold(None);
        self.free(key);
    }

    pub(crate) fn free(&mut self, key: Option<KeyHash>) {
        if let Some(key) = key
            && let Some(count) = self.busy.get_mut(&key)
        {
            *count -= 1;
            if *count == 0 {
                self.busy.remove(&key);
            }
        }
    }

    /// Takes the outbox's answer in; starts a round if one is needed.
    pub(crate) fn signalled(&mut self, signal: HeldSignal, holds_unsettled: usize) {
        self.any = signal.messages > 0 || holds_unsettled > 0 || !self.busy.is_empty() || self.decided;
        let needed = signal.due || !signal.unblocked.is_empty() || signal.actions != self.actions;
        self.round = if needed { Round::Barrier { unblocked: signal.unblocked } } else { Round::Idle };
    }
}

impl HeldBook {
    /// Whether pages must wait for the release round.
    pub(crate) fn pages_wait(&self) -> bool {
        matches!(self.round, Round::Barrier { .. } | Round::Reading)
    }
}
