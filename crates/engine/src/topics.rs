//! What is known of topics: which can be written to, which are held, and when to ask again.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use outboxd_core::{Backoff, Destination, HoldReason, Routes, TopicInfo};
use tokio::time::Instant;

use crate::publisher::TopicState;

/// How long an answer about a writable topic is believed before it is asked for again, off the path.
const FRESH_FOR: Duration = Duration::from_secs(60);
/// A refusal that rests on an answer older than this is checked against a fresh one first.
const BELIEVED_FOR: Duration = Duration::from_secs(1);
/// Topics asked for again at a time.
const REFRESH_MAX: usize = 100;

const HELD_CHECK_MIN: Duration = Duration::from_millis(500);
const HELD_CHECK_MAX: Duration = Duration::from_secs(10);

#[derive(Debug)]
struct Entry {
    name: Arc<str>,
    known: Known,
    checked_at: Instant,
    asking: bool,
    /// A message was to be published since it was checked.
    used: bool,
}

#[derive(Debug)]
enum Known {
    Nothing,
    Writable(TopicInfo),
    Held { reason: HoldReason, check_at: Instant, backoff: Backoff },
}

/// What the loop may do with a message of a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leave {
    Write(TopicInfo),
    Hold(HoldReason),
    /// Not known yet: it must be asked for.
    Ask,
}

/// What an answer about a topic has changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Learnt {
    /// It can be written to now and could not before, or the other way round.
    pub(crate) turned: bool,
    /// How many partitions it had and has, if that is not the same.
    pub(crate) partitions: Option<(i32, i32)>,
}

#[derive(Debug)]
pub(crate) struct Topics {
    routes: Routes,
    /// By the topic that intents name.
    destinations: HashMap<Box<str>, Arc<Destination>>,
    entries: HashMap<Arc<str>, Entry>,
    /// Of every topic that could ever be written to; as many as the cluster has.
    partitions: HashMap<Arc<str>, i32>,
}

impl Topics {
    pub(crate) fn new(routes: Routes) -> Self {
        Self { routes, destinations: HashMap::new(), entries: HashMap::new(), partitions: HashMap::new() }
    }

    /// Where messages go whose intents name this topic; shared, so that a million messages do not hold a million copies. From now
    /// on the topic is asked for.
    pub(crate) fn destination(&mut self, intents_topic: &str) -> Arc<Destination> {
        if let Some(known) = self.destinations.get(intents_topic) {
            return Arc::clone(known);
        }
        let destination = Arc::new(self.routes.destination(intents_topic));
        // What goes nowhere is not asked for, and not kept: anybody can make up any number of such names.
        if destination.refusal.is_none() {
            self.insert(&destination.topic);
            self.destinations.insert(Box::from(intents_topic), Arc::clone(&destination));
        }
        destination
    }

    fn insert(&mut self, topic: &str) {
        if !self.entries.contains_key(topic) {
            let name: Arc<str> = Arc::from(topic);
            let entry = Entry {
                name: Arc::clone(&name),
                known: Known::Nothing,
                checked_at: Instant::now(),
                asking: false,
                used: true,
            };
            self.entries.insert(name, entry);
        }
    }

    pub(crate) fn leave(&mut self, topic: &str) -> Leave {
        let Some(entry) = self.entries.get_mut(topic) else {
            // Forgotten while the message waited: what is asked for must be known by name.
            self.insert(topic);
            return Leave::Ask;
        };
        entry.used = true;
        match &entry.known {
            Known::Writable(info) => Leave::Write(*info),
            Known::Held { reason, .. } => Leave::Hold(*reason),
            Known::Nothing => Leave::Ask,
        }
    }

    /// Forgets an answer that is too old to refuse a message by: a released one is judged by what was answered after its release,
    /// because an operator retries it when the topic has been changed. Whether it did.
    pub(crate) fn doubt(&mut self, topic: &str, now: Instant, released_at: Option<Instant>) -> bool {
        match self.entries.get_mut(topic) {
            Some(entry)
                if now.saturating_duration_since(entry.checked_at) > BELIEVED_FOR
                    || released_at.is_some_and(|released_at| entry.checked_at < released_at) =>
            {
                entry.known = Known::Nothing;
                true
            }
            _ => false,
        }
    }

    /// Topics that nothing is known of and that are not being asked for; marks them as asked.
    pub(crate) fn ask_unknown(&mut self) -> Vec<String> {
        let unknown =
            self.entries.values_mut().filter(|entry| matches!(entry.known, Known::Nothing) && !entry.asking);
        unknown.map(Entry::ask).collect()
    }

    /// Those of these topics that were not asked for just now; marks them as asked.
    pub(crate) fn ask_about(&mut self, topics: &BTreeSet<String>, now: Instant) -> Vec<String> {
        let entries = self.entries.values_mut().filter(|entry| topics.contains(&*entry.name));
        let old = entries
            .filter(|entry| !entry.asking && now.saturating_duration_since(entry.checked_at) > BELIEVED_FOR);
        old.map(Entry::ask).collect()
    }

    /// No answer is on its way: whoever waited for them is gone.
    pub(crate) fn forget_questions(&mut self) {
        self.entries.values_mut().for_each(|entry| entry.asking = false);
    }

    /// Topics whose state should be asked for again: held ones whose time has come, and stale ones that were used since. Marks
    /// them, and forgets stale ones that were not.
    pub(crate) fn ask_again(&mut self, now: Instant) -> Vec<String> {
        let before = self.entries.len();
        self.entries.retain(|_, entry| entry.asking || entry.used || !entry.is_stale(now));
        if self.entries.len() < before {
            self.destinations.retain(|_, destination| self.entries.contains_key(&destination.topic));
        }
        let due = self.entries.values_mut().filter(|entry| {
            !entry.asking
                && match &entry.known {
                    Known::Held { check_at, .. } => *check_at <= now,
                    Known::Writable(_) => entry.is_stale(now),
                    Known::Nothing => false,
                }
        });
        due.take(REFRESH_MAX).map(Entry::ask).collect()
    }

    /// Takes an answer in.
    pub(crate) fn learn(&mut self, topic: &str, state: &TopicState, now: Instant, random: f64) -> Learnt {
        let Some(entry) = self.entries.get_mut(topic) else { return Learnt::default() };
        entry.asking = false;
        match state {
            TopicState::Writable(info) => {
                entry.checked_at = now;
                let turned = matches!(entry.known, Known::Held { .. });
                entry.known = Known::Writable(*info);
                let had = self.partitions.insert(Arc::clone(&entry.name), info.partitions);
                let partitions = had.filter(|had| *had != info.partitions).map(|had| (had, info.partitions));
                Learnt { turned, partitions }
            }
            TopicState::Held(reason) => {
                entry.checked_at = now;
                Learnt { turned: entry.hold(*reason, now, random), partitions: None }
            }
            TopicState::Unreachable(_) => {
                if let Known::Held { check_at, backoff, .. } = &mut entry.known {
                    *check_at = now + backoff.next(random);
                }
                Learnt::default()
            }
        }
    }

    /// A delivery report said that the topic cannot be written to.
    pub(crate) fn hold(&mut self, topic: &str, reason: HoldReason, now: Instant, random: f64) -> bool {
        self.entries.get_mut(topic).is_some_and(|entry| entry.hold(reason, now, random))
    }

    /// Topics that cannot be written to.
    pub(crate) fn held(&self) -> Vec<String> {
        let held = self.entries.values().filter(|entry| matches!(entry.known, Known::Held { .. }));
        held.map(|entry| entry.name.to_string()).collect()
    }
}

impl Entry {
    fn is_stale(&self, now: Instant) -> bool {
        matches!(self.known, Known::Writable(_)) && now.saturating_duration_since(self.checked_at) > FRESH_FOR
    }

    fn ask(&mut self) -> String {
        self.asking = true;
        self.used = false;
        self.name.to_string()
    }

    fn hold(&mut self, reason: HoldReason, now: Instant, random: f64) -> bool {
        if let Known::Held { reason: known, check_at, backoff } = &mut self.known {
            *known = reason;
            *check_at = now + backoff.next(random);
            return false;
        }
        let mut backoff = Backoff::new(HELD_CHECK_MIN, HELD_CHECK_MAX);
        self.known = Known::Held { reason, check_at: now + backoff.next(random), backoff };
        true
    }
}
