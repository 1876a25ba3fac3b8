//! Replays of the outbox in memory.

use std::time::Duration;

use outboxd_core::{Message, Seq};
use outboxd_engine::{
    OutboxError, ReplayChunk, ReplayProgress, ReplayQuery, ReplayState, ReplayStop, ReplayTask, ReplayTurn,
    Replays,
};

use super::{MemoryOutbox, MemoryTable, State, bytes_of};

/// A replay as a test sees it.
#[derive(Clone, Debug)]
pub struct MemoryReplay {
    /// What the leader is told of it; `pos` is how far it is.
    pub task: ReplayTask,
    /// Where it stands.
    pub state: ReplayState,
    /// The key that is meant; `None`: any.
    pub key: Option<String>,
    /// Copies that were acknowledged.
    pub published: u64,
    /// Why it was stopped.
    pub stop: Option<ReplayStop>,
    /// The term that took it up last, and how many in a row got nowhere.
    taken: (i64, u32),
}

impl MemoryTable {
    /// Asks for everything that is dispatched now to be published again. Its number.
    pub fn replay(&self, key: Option<&str>, to_topic: Option<&str>, rate: Option<u32>) -> i64 {
        let mut state = self.state();
        let replay = i64::try_from(state.replays.len()).unwrap_or(i64::MAX) + 1;
        let last = state.cursor.high;
        let task = ReplayTask {
            replay,
            who: "ops".into(),
            to_topic: to_topic.map(str::to_owned),
            rate,
            total: 0,
            pos: Seq(0),
            last,
            in_vain: 0,
        };
        let key = key.map(str::to_owned);
        state.replays.push(MemoryReplay {
            task,
            state: ReplayState::Running,
            key,
            published: 0,
            stop: None,
            taken: (0, 0),
        });
        replay
    }

    /// Gives a replay another state, as an operator does.
    pub fn set_replay(&self, replay: i64, to: ReplayState) {
        if let Some(replay) = self.state().replay_mut(replay) {
            replay.state = to;
            replay.taken = (0, 0);
        }
    }

    /// How long a question about the next messages of a replay is on its way.
    pub fn replay_takes(&self, duration: Duration) {
        self.state().replay_takes = duration;
    }

    /// A replay.
    ///
    /// # Panics
    /// If there is none of this number.
    #[must_use]
    pub fn replay_of(&self, replay: i64) -> MemoryReplay {
        self.state().replay_mut(replay).expect("a replay of this number").clone()
    }

    /// The places of the copies whose receipts were stored, in the order in which they were.
    #[must_use]
    pub fn replayed(&self) -> Vec<Seq> {
        self.state().replayed.clone()
    }
}

impl State {
    fn replay_mut(&mut self, replay: i64) -> Option<&mut MemoryReplay> {
        self.replays.iter_mut().find(|its| its.task.replay == replay)
    }

    fn was_dispatched(&self, seq: Seq) -> bool {
        self.visible_in_cursor(&self.rows[&seq])
            && !self.held.contains_key(&seq)
            && !self.scheduled.contains_key(&seq)
            && !self.discarded.contains(&seq)
            && !self.cancelled.contains(&seq)
    }
}

impl Replays for MemoryOutbox {
    async fn replay_chunk(&self, query: &ReplayQuery) -> Result<Option<ReplayChunk>, OutboxError> {
        let takes = self.table.state().replay_takes;
        tokio::time::sleep(takes).await;
        let state = self.table.state();
        state.alive("read the messages of a replay")?;
        if state.term != Some((query.term.epoch, query.term.nonce)) {
            return Err(OutboxError::Fenced);
        }
        let is_asked_for = |replay: &&MemoryReplay| {
            replay.state == ReplayState::Running
                && query.going_on.is_none_or(|(number, _)| number == replay.task.replay)
        };
        let Some(MemoryReplay { task, key, taken, .. }) = state.replays.iter().find(is_asked_for) else {
            return Ok(None);
        };
        let above = query.going_on.map_or(task.pos, |(_, from)| from.max(task.pos));
        let rows = usize::try_from(query.rows).unwrap_or(usize::MAX);
        let looked: Vec<Seq> = state
            .rows
            .range(Seq(above.0 + 1)..)
            .map(|(seq, _)| *seq)
            .take_while(|seq| *seq <= task.last)
            .take(rows)
            .collect();
        let mut reached = looked.last().copied().filter(|_| looked.len() >= rows).unwrap_or(task.last);
        let meant = looked.into_iter().filter(|seq| {
            state.was_dispatched(*seq)
                && key.as_ref().is_none_or(|key| state.rows[seq].message.key.as_ref() == Some(key))
        });
        let (mut messages, mut bytes): (Vec<Message>, u64) = (Vec::new(), 0);
        for seq in meant {
            if messages.len() >= usize::try_from(query.limit.messages).unwrap_or(usize::MAX)
                || bytes >= query.limit.bytes
            {
                reached = messages.last().map_or(reached, |message| message.seq);
                break;
            }
            let message = state.edited.get(&seq).unwrap_or_else(|| &state.rows[&seq].message).clone();
            bytes += bytes_of(&message);
            messages.push(message);
        }
        let is_in_vain = taken.0 != query.term.epoch && !state.ended.contains(&taken.0);
        let task = ReplayTask { in_vain: if is_in_vain { taken.1 } else { 0 }, ..task.clone() };
        Ok(Some(ReplayChunk { task, messages, reached }))
    }

    async fn replay_progress(&self, progress: &ReplayProgress) -> Result<Option<ReplayState>, OutboxError> {
        let mut state = self.table.state();
        state.alive("write down how far a replay is")?;
        if state.term != Some((progress.term.epoch, progress.term.nonce)) {
            return Err(OutboxError::Fenced);
        }
        let epoch = progress.term.epoch;
        let ended = state.ended.clone();
        let places: Vec<Seq> = progress.receipts.iter().map(|entry| entry.seq).collect();
        let Some(replay) = state.replay_mut(progress.replay).filter(|its| its.task.pos == progress.before)
        else {
            return Ok(None);
        };
        replay.task.pos = progress.after;
        replay.published += places.len() as u64;
        let takes = match replay.taken {
            _ if !places.is_empty() => 0,
            (taken, takes) if taken == epoch => takes,
            (taken, takes) if taken > 0 && !ended.contains(&taken) => takes + 1,
            _ => 1,
        };
        replay.taken = (epoch, takes);
        if replay.state == ReplayState::Running {
            match &progress.turn {
                ReplayTurn::GoesOn => {}
                ReplayTurn::Done => replay.state = ReplayState::Done,
                ReplayTurn::Stopped(stop) => {
                    replay.state = ReplayState::Stopped;
                    replay.stop = Some(stop.clone());
                }
            }
        }
        let now = replay.state;
        state.replayed.extend(places);
        Ok(Some(now))
    }
}
