//! An outbox in memory.

mod replays;

mod upkeep;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use outboxd_core::{
    Cursor, Hold, HoldReason, HoldState, KeyHash, Message, Page, ReceiptEntry, Scheduled, Seq, Snapshot,
};
use outboxd_engine::{
    Due, DurabilityMark, HeldChange, HeldCount, HeldSignal, Outbox, OutboxError, PageLimit, ReadPage,
    Release, ReleaseQuery, Rewound, Settlement, Start, Term, Trial,
};
use time::OffsetDateTime;
use tokio::time::Instant;
use uuid::Uuid;

pub use replays::MemoryReplay;

/// What a test writes: the intent's fields that matter to the loop.
#[derive(Clone, Debug)]
pub struct Written {
    /// Topic.
    pub topic: String,
    /// Key.
    pub key: Option<String>,
    /// Payload.
    pub payload: Option<Vec<u8>>,
    /// Not to be delivered before so long after the commit.
    pub deliver_in: Option<Duration>,
}

impl Written {
    /// An intent with a key.
    #[must_use]
    pub fn keyed(topic: &str, key: &str, payload: &str) -> Self {
        Self { topic: topic.into(), key: Some(key.into()), payload: Some(payload.into()), deliver_in: None }
    }
}

#[derive(Debug)]
struct Row {
    message: Message,
    commit: u64,
    /// When it was committed, or its time, if that is later.
    due_at: Instant,
}

#[derive(Clone, Debug)]
struct HeldRow {
    hold: Hold,
    due_at: Instant,
}

#[derive(Debug)]
struct State {
    rows: BTreeMap<Seq, Row>,
    next_seq: i64,
    commits: u64,
    cursor: Cursor,
    term: Option<(i64, Uuid)>,
    epoch: i64,
    leader: Option<u64>,
    instances: u64,
    receipts: BTreeMap<Seq, (ReceiptEntry, Instant)>,
    held: BTreeMap<Seq, HeldRow>,
    /// What is published instead of what was written.
    edited: BTreeMap<Seq, Message>,
    scheduled: BTreeMap<Seq, Scheduled>,
    cancelled: BTreeSet<Seq>,
    discarded: Vec<Seq>,
    actions: i64,
    terms_unsettled: u32,
    trial: Option<Trial>,
    available: bool,
    settles: u64,
    reads_fail: bool,
    due_takes: Duration,
    signal_takes: Duration,
    replay_takes: Duration,
    /// How far this outbox's clock is ahead of the test's.
    ahead: Duration,
    kafka_cluster: Option<String>,
    /// Receipts that were stored before this time may be gone.
    receipts_since: Option<Instant>,
    swept_to: Seq,
    lap_ended_at: Instant,
    rewinds: Vec<Rewound>,
    replays: Vec<MemoryReplay>,
    /// Terms that ended in order.
    ended: BTreeSet<i64>,
    replayed: Vec<Seq>,
}

/// The table: shared by the application (the test) and any number of relays.
#[derive(Clone, Debug)]
pub struct MemoryTable(Arc<Mutex<State>>);

impl Default for MemoryTable {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(State {
            rows: BTreeMap::new(),
            next_seq: 1,
            commits: 0,
            cursor: Cursor { high: Seq(0), seen: Snapshot::new("0"), catch_up: None },
            term: None,
            epoch: 0,
            leader: None,
            instances: 0,
            receipts: BTreeMap::new(),
            held: BTreeMap::new(),
            edited: BTreeMap::new(),
            scheduled: BTreeMap::new(),
            cancelled: BTreeSet::new(),
            discarded: Vec::new(),
            actions: 0,
            terms_unsettled: 0,
            trial: None,
            available: true,
            settles: 0,
            reads_fail: false,
            due_takes: Duration::ZERO,
            signal_takes: Duration::ZERO,
            replay_takes: Duration::ZERO,
            ahead: Duration::ZERO,
            kafka_cluster: None,
            receipts_since: None,
            swept_to: Seq(0),
            lap_ended_at: Instant::now(),
            rewinds: Vec::new(),
            replays: Vec::new(),
            ended: BTreeSet::new(),
            replayed: Vec::new(),
        })))
    }
}

impl MemoryTable {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Draws places in the outbox without committing: what a transaction does when it inserts.
    #[must_use]
    pub fn draw(&self, intents: usize) -> Vec<Seq> {
        let mut state = self.state();
        let first = state.next_seq;
        state.next_seq += i64::try_from(intents).unwrap_or(i64::MAX);
        (first..state.next_seq).map(Seq).collect()
    }

    /// Commits intents at places drawn before. Returns their ids.
    pub fn commit_at(&self, seqs: &[Seq], intents: &[Written]) -> Vec<Uuid> {
        let mut state = self.state();
        state.commits += 1;
        let (commit, committed_at) = (state.commits, state.now());
        seqs.iter()
            .zip(intents)
            .map(|(seq, intent)| {
                let id = Uuid::from_u64_pair(0x0b0c, seq.0.unsigned_abs());
                let message = Message {
                    seq: *seq,
                    id,
                    topic: intent.topic.clone(),
                    key: intent.key.clone(),
                    payload: intent.payload.clone().map(Into::into),
                    headers: Vec::new(),
                    partition: None,
                    content_type: None,
                    correlation_id: format!("correlation-{seq}"),
                    causation_id: None,
                    traceparent: None,
                    tracestate: None,
                    created_at: OffsetDateTime::UNIX_EPOCH,
                    deliver_after: intent.deliver_in.map(|after| OffsetDateTime::UNIX_EPOCH + after),
                    age: Duration::ZERO,
                };
                let due_at = committed_at + intent.deliver_in.unwrap_or_default();
                state.rows.insert(*seq, Row { message, commit, due_at });
                id
            })
            .collect()
    }

    /// One transaction that inserts and commits.
    pub fn commit(&self, intents: &[Written]) -> Vec<Uuid> {
        let seqs = self.draw(intents.len());
        self.commit_at(&seqs, intents)
    }

    /// Takes the database away, or brings it back. While it is away every call fails and the lead is lost.
    pub fn available(&self, available: bool) {
        let mut state = self.state();
        state.available = available;
        if !available {
            state.leader = None;
        }
    }

    /// Pages cannot be read although everything else works, or can be again.
    pub fn reads_fail(&self, fail: bool) {
        self.state().reads_fail = fail;
    }

    /// How long the answer to the question for due messages is on its way.
    pub fn due_takes(&self, duration: Duration) {
        self.state().due_takes = duration;
    }

    /// How long the answer to the question whether a round is needed is on its way.
    pub fn signal_takes(&self, duration: Duration) {
        self.state().signal_takes = duration;
    }

    /// Ends the lead session of whoever leads, as a terminated backend does; the term stays until somebody else leads.
    pub fn end_lead_session(&self) {
        self.state().leader = None;
    }

    /// Receipts, ascending by `seq`.
    #[must_use]
    pub fn receipts(&self) -> Vec<ReceiptEntry> {
        self.state().receipts.values().map(|(entry, _)| entry.clone()).collect()
    }

    /// Held messages, ascending by `seq`.
    #[must_use]
    pub fn held(&self) -> Vec<Hold> {
        self.state().held.values().map(|row| row.hold.clone()).collect()
    }

    /// The places of scheduled messages, ascending.
    #[must_use]
    pub fn scheduled(&self) -> Vec<Seq> {
        self.state().scheduled.keys().copied().collect()
    }

    /// The application takes a scheduled intent back.
    pub fn cancel(&self, seq: Seq) {
        self.state().cancelled.insert(seq);
    }

    /// The settled cursor.
    #[must_use]
    pub fn cursor(&self) -> Cursor {
        self.state().cursor.clone()
    }

    /// The attempt that is noted and has not finished.
    #[must_use]
    pub fn trial(&self) -> Option<Trial> {
        self.state().trial
    }

    /// What may have been published twice within a term, as the relay said.
    pub fn rewinds(&self) -> Vec<Rewound> {
        self.state().rewinds.clone()
    }

    /// Settles that were written.
    #[must_use]
    pub fn settles(&self) -> u64 {
        self.state().settles
    }

    /// Committed messages that are neither dispatched nor held nor discarded.
    #[must_use]
    pub fn undispatched(&self) -> usize {
        let state = self.state();
        let settled = |row: &&Row| !state.visible_in_cursor(row);
        state.rows.values().filter(settled).count()
    }

    /// The operator's retry.
    pub fn retry(&self, seq: Seq) {
        let mut state = self.state();
        let now = state.now();
        state.actions += 1;
        if let Some(row) = state.held.get_mut(&seq) {
            row.hold.state = HoldState::Retry;
            row.due_at = now;
        }
    }

    /// The operator's discard: if it was the first of its key, the next one becomes due.
    pub fn discard(&self, seq: Seq) {
        let mut state = self.state();
        let now = state.now();
        state.actions += 1;
        let Some(gone) = state.held.remove(&seq) else { return };
        state.discarded.push(seq);
        let first = state
            .held
            .values_mut()
            .find(|row| row.hold.key_hash.is_some() && row.hold.key_hash == gone.hold.key_hash);
        if let Some(next) = first.filter(|first| first.hold.seq > seq) {
            next.hold.state = HoldState::Retry;
            next.due_at = now;
        }
    }

    /// The operator's edit of the topic, which parks the message in its place under another key: what waited for it goes without it.
    pub fn move_to_topic(&self, seq: Seq, topic: &str) {
        let mut state = self.state();
        let now = state.now();
        state.actions += 1;
        let mut message = state.edited.get(&seq).unwrap_or_else(|| &state.rows[&seq].message).clone();
        message.topic = topic.into();
        let Some(row) = state.held.get_mut(&seq) else { return };
        let before = row.hold.key_hash;
        row.hold.topic = topic.into();
        row.hold.key_hash = KeyHash::of(&message);
        row.hold.state = HoldState::Parked;
        state.edited.insert(seq, message);
        let first = state.held.values_mut().find(|row| before.is_some() && row.hold.key_hash == before);
        if let Some(next) = first.filter(|first| first.hold.seq > seq) {
            next.hold.state = HoldState::Retry;
            next.due_at = now;
        }
    }

    /// Moves this outbox's clock: everything that is stored becomes older.
    pub fn age(&self, by: Duration) {
        self.state().ahead += by;
    }

    /// Another relay takes a term, while the sessions of the present leader live on.
    pub fn fence(&self) {
        let mut state = self.state();
        state.epoch += 1;
        state.term = Some((state.epoch, Uuid::new_v4()));
    }

    /// Forgets that a message was published, as if the cursor had passed it unseen.
    pub fn strand(&self, seq: Seq) {
        self.state().receipts.remove(&seq);
    }

    /// The places of all intents, ascending.
    #[must_use]
    pub fn intents(&self) -> Vec<Seq> {
        self.state().rows.keys().copied().collect()
    }

    /// A relay's view of this table.
    #[must_use]
    pub fn outbox(&self) -> MemoryOutbox {
        let mut state = self.state();
        state.instances += 1;
        MemoryOutbox { table: self.clone(), instance: state.instances }
    }
}

impl State {
    fn now(&self) -> Instant {
        Instant::now() + self.ahead
    }

    fn visible_in_cursor(&self, row: &Row) -> bool {
        let visible = |snapshot: &Snapshot| row.commit <= number(snapshot);
        let seq = row.message.seq;
        (seq <= self.cursor.high && visible(&self.cursor.seen))
            || self
                .cursor
                .catch_up
                .as_ref()
                .is_some_and(|catch_up| seq <= catch_up.pos && visible(&catch_up.until))
    }

    fn alive(&self, doing: &'static str) -> Result<(), OutboxError> {
        if self.available {
            Ok(())
        } else {
            Err(OutboxError::unavailable(doing, "the memory outbox is away"))
        }
    }

    fn leads(&self, instance: u64, term: Term, doing: &'static str) -> Result<(), OutboxError> {
        self.alive(doing)?;
        if self.term != Some((term.epoch, term.nonce)) {
            return Err(OutboxError::Fenced);
        }
        if self.leader != Some(instance) {
            return Err(OutboxError::unavailable(doing, "the lead session is gone"));
        }
        Ok(())
    }

    fn held_counts(&self) -> Vec<HeldCount> {
        let mut counts: HashMap<KeyHash, u32> = HashMap::new();
        for key in self.held.values().filter_map(|row| row.hold.key_hash) {
            *counts.entry(key).or_default() += 1;
        }
        counts.into_iter().map(|(key_hash, messages)| HeldCount { key_hash, messages }).collect()
    }

    /// Makes scheduled messages whose time has come held ones; the keys that are busy from now on.
    fn promote(&mut self, limit: usize) -> Vec<KeyHash> {
        let now = self.now();
        let mut due: Vec<(Instant, Seq)> = self
            .scheduled
            .keys()
            .map(|seq| (self.rows[seq].due_at, *seq))
            .filter(|(at, _)| *at <= now)
            .collect();
        due.sort_unstable();
        due.truncate(limit);
        let busy: BTreeSet<KeyHash> = self.held_counts().into_iter().map(|count| count.key_hash).collect();
        let mut keys = Vec::new();
        for (_, seq) in due {
            let Some(Scheduled { topic, key_hash, .. }) = self.scheduled.remove(&seq) else { continue };
            if self.cancelled.contains(&seq) {
                continue;
            }
            let (state, reason) = match key_hash {
                Some(key) if busy.contains(&key) => (HoldState::Behind, HoldReason::Behind),
                _ => (HoldState::Retry, HoldReason::Scheduled),
            };
            let due_in = Duration::ZERO;
            let hold = Hold {
                seq,
                topic,
                key_hash,
                state,
                reason,
                error: None,
                attempts: 0,
                due_in,
                dead_letter: None,
            };
            self.held.insert(seq, HeldRow { hold, due_at: now });
            keys.extend(key_hash);
        }
        keys
    }

    fn is_due(&self, row: &HeldRow, topics_held: &[String], unblocked: &[KeyHash]) -> bool {
        if topics_held.contains(&row.hold.topic) {
            return false;
        }
        match row.hold.state {
            HoldState::Retry => row.due_at <= self.now(),
            HoldState::Topic => true,
            HoldState::Behind => row.hold.key_hash.is_some_and(|key| unblocked.contains(&key)),
            HoldState::Parked => false,
        }
    }
}

fn number(snapshot: &Snapshot) -> u64 {
    snapshot.as_str().parse().unwrap_or(0)
}

/// [`MemoryTable`] as a relay sees it.
#[derive(Debug)]
pub struct MemoryOutbox {
    table: MemoryTable,
    instance: u64,
}

impl MemoryOutbox {
    fn page(&self, from: &Cursor, limit: PageLimit) -> Result<ReadPage, OutboxError> {
        let state = self.table.state();
        state.alive("read page")?;
        if state.reads_fail {
            return Err(OutboxError::unavailable("read page", "the memory outbox does not say"));
        }
        let seen = number(&from.seen);
        let now = state.now();
        let limit_messages = usize::try_from(limit.messages).unwrap_or(usize::MAX);
        let (until, after) = match &from.catch_up {
            Some(catch_up) => (number(&catch_up.until), catch_up.pos),
            None => (state.commits, Seq(i64::MIN)),
        };
        let is_late = |row: &&Row| {
            row.message.seq <= from.high
                && row.message.seq > after
                && row.commit > seen
                && row.commit <= until
        };
        let late_all: Vec<&Row> = state.rows.values().filter(is_late).take(limit_messages + 1).collect();
        let mut chosen = cut(&late_all[..late_all.len().min(limit_messages)], limit.bytes);
        let late_complete = chosen.len() == late_all.len();
        let late = chosen.len();
        let late_bytes: u64 = chosen.iter().map(|row| bytes_of(&row.message)).sum();
        let mut cut_short = !late_complete;
        if late_complete && from.catch_up.is_none() {
            let is_next = |row: &&Row| row.message.seq > from.high;
            let rest: Vec<&Row> = state.rows.values().filter(is_next).take(limit_messages - late).collect();
            let taken = cut(&rest, limit.bytes.saturating_sub(late_bytes));
            cut_short = taken.len() < rest.len();
            chosen.extend(taken);
        }
        let messages: Vec<Message> = chosen
            .iter()
            .map(|row| Message { age: now.saturating_duration_since(row.due_at), ..row.message.clone() })
            .collect();
        let more = cut_short || messages.len() >= limit_messages;
        let snapshot = Snapshot::new(&state.commits.to_string());
        Ok(ReadPage {
            page: Page { from: from.clone(), snapshot, late, late_complete, messages },
            mark: None,
            more,
        })
    }
}

impl MemoryOutbox {
    /// The answer as of now, and how long it is on its way.
    fn signal_now(&self, topics_held: &[String]) -> Result<(HeldSignal, Duration), OutboxError> {
        let state = self.table.state();
        state.alive("ask for held messages")?;
        let now = state.now();
        let due = state.held.values().any(|row| state.is_due(row, topics_held, &[]))
            || state.scheduled.keys().any(|seq| state.rows[seq].due_at <= now);
        let mut only_behind: BTreeMap<KeyHash, bool> = BTreeMap::new();
        for hold in state.held.values().map(|row| &row.hold) {
            if let Some(key) = hold.key_hash {
                *only_behind.entry(key).or_insert(true) &= hold.state == HoldState::Behind;
            }
        }
        let unblocked = only_behind.into_iter().filter_map(|(key, only)| only.then_some(key)).collect();
        let messages = (state.held.len() + state.scheduled.len()) as u64;
        let signal = HeldSignal { messages, due, unblocked, actions: state.actions };
        Ok((signal, state.signal_takes))
    }

    /// The answer as of now, and how long it is on its way.
    fn due_now(&self, query: &ReleaseQuery, actions: i64) -> Result<(Release, Duration), OutboxError> {
        let mut state = self.table.state();
        state.leads(self.instance, query.term, "read held messages")?;
        let promoted = state.promote(usize::try_from(query.limit.messages).unwrap_or(usize::MAX));
        let mut blocked: Vec<KeyHash> = Vec::new();
        let (mut due, mut bytes, mut demoted) = (Vec::new(), 0, Vec::new());
        for row in state.held.values() {
            let key = row.hold.key_hash;
            let is_blocked = key.is_some_and(|key| blocked.contains(&key));
            let is_due = state.is_due(row, &query.topics_held, &query.unblocked);
            if let Some(key) = key
                && (!is_due || row.hold.attempts > 0)
            {
                blocked.push(key);
            }
            if is_due && is_blocked {
                demoted.push(row.hold.seq);
            }
            if is_due
                && !is_blocked
                && due.len() < usize::try_from(query.limit.messages).unwrap_or(usize::MAX)
                && bytes < query.limit.bytes
            {
                let seq = &row.hold.seq;
                let message = state.edited.get(seq).unwrap_or_else(|| &state.rows[seq].message).clone();
                bytes += bytes_of(&message);
                due.push(Due { message, attempts: row.hold.attempts, key_hash: key });
            }
        }
        // What is due and blocked waits behind what blocks it, and for nothing of its own any longer.
        for seq in demoted {
            if let Some(row) = state.held.get_mut(&seq) {
                row.hold.state = HoldState::Behind;
                row.hold.reason = HoldReason::Behind;
            }
        }
        let change = (state.actions != actions)
            .then(|| HeldChange { held: state.held_counts(), actions: state.actions });
        Ok((Release { due, change, promoted }, state.due_takes))
    }
}

fn cut<'a>(rows: &[&'a Row], bytes_max: u64) -> Vec<&'a Row> {
    let mut bytes = 0;
    rows.iter()
        .copied()
        .take_while(|row| {
            let fits = bytes < bytes_max;
            bytes += bytes_of(&row.message);
            fits
        })
        .collect()
}

/// What counts against a page's limit: payload and key.
fn bytes_of(message: &Message) -> u64 {
    let payload = message.payload.as_ref().map_or(0, |payload| payload.len());
    (payload + message.key.as_ref().map_or(0, String::len)) as u64
}

impl Outbox for MemoryOutbox {
    async fn lead(&self) -> Result<Option<Term>, OutboxError> {
        let mut state = self.table.state();
        state.alive("take the lead")?;
        if state.leader.is_some_and(|leader| leader != self.instance) {
            return Ok(None);
        }
        state.leader = Some(self.instance);
        state.epoch += 1;
        state.terms_unsettled += 1;
        let term = Term { epoch: state.epoch, nonce: Uuid::new_v4(), keep_every: Duration::from_secs(1) };
        state.term = Some((term.epoch, term.nonce));
        Ok(Some(term))
    }

    async fn start(&self, term: Term) -> Result<Start, OutboxError> {
        let state = self.table.state();
        state.leads(self.instance, term, "read the cursor")?;
        Ok(Start {
            cursor: state.cursor.clone(),
            held: state.held_counts(),
            actions: state.actions,
            kafka_cluster: state.kafka_cluster.clone(),
            terms_unsettled: state.terms_unsettled.saturating_sub(1),
            trial: state.trial,
            trial_is_held: state.trial.is_some_and(|trial| state.held.contains_key(&trial.seq)),
        })
    }

    async fn remember_kafka(&self, term: Term, cluster: &str) -> Result<(), OutboxError> {
        let mut state = self.table.state();
        state.leads(self.instance, term, "remember the Kafka cluster")?;
        state.kafka_cluster.get_or_insert_with(|| cluster.to_owned());
        Ok(())
    }

    async fn keep(&self, term: Term) -> Result<(), OutboxError> {
        self.table.state().leads(self.instance, term, "keep the lead")
    }

    fn read(
        &self,
        from: &Cursor,
        limit: PageLimit,
    ) -> impl Future<Output = Result<ReadPage, OutboxError>> + Send {
        std::future::ready(self.page(from, limit))
    }

    async fn durable(&self, _mark: DurabilityMark) -> Result<(), OutboxError> {
        self.table.state().alive("wait for durability")
    }

    async fn settle(&self, settlement: Settlement) -> Result<(), OutboxError> {
        let mut state = self.table.state();
        state.leads(self.instance, settlement.term, "settle page")?;
        if state.cursor != settlement.before {
            return Err(OutboxError::Fenced);
        }
        let now = state.now();
        state.cursor = settlement.after;
        state.settles += 1;
        state.trial = settlement.trial;
        if settlement.proves_term {
            state.terms_unsettled = 0;
        }
        for entry in settlement.receipts.into_iter().chain(settlement.receipts_out_of_order) {
            state.receipts.insert(entry.seq, (entry, now));
        }
        for hold in settlement.holds {
            let due_at = now + hold.due_in;
            let copied_before = state.held.get(&hold.seq).and_then(|row| row.hold.dead_letter.clone());
            let hold = Hold { dead_letter: hold.dead_letter.or(copied_before), ..hold };
            state.held.insert(hold.seq, HeldRow { hold, due_at });
        }
        for seq in settlement.released {
            state.held.remove(&seq);
        }
        for scheduled in settlement.scheduled {
            state.scheduled.insert(scheduled.seq, scheduled);
        }
        Ok(())
    }

    async fn held(&self, topics_held: &[String]) -> Result<HeldSignal, OutboxError> {
        let (signal, takes) = self.signal_now(topics_held)?;
        if !takes.is_zero() {
            tokio::time::sleep(takes).await;
        }
        Ok(signal)
    }

    async fn due(&self, query: &ReleaseQuery, actions: i64) -> Result<Release, OutboxError> {
        let (answer, takes) = self.due_now(query, actions)?;
        if !takes.is_zero() {
            tokio::time::sleep(takes).await;
        }
        Ok(answer)
    }

    async fn step_down(&self) {
        let mut state = self.table.state();
        if state.leader == Some(self.instance) {
            state.leader = None;
            state.terms_unsettled = 0;
            let epoch = state.epoch;
            state.ended.insert(epoch);
        }
    }
}
