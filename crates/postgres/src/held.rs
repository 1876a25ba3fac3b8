//! Held messages, as the loop asks about them.
//!
//! The loop asks a few times a second while anything is held, and a topic that is missing for a day may have held millions of
//! messages by then. So no statement's work grows with their number: the table as a whole is walked page by page, once a term
//! and after an operator acted; otherwise a settle says which keys it may have unblocked, and only those are asked about.
//!
//! Within a term only this relay and operators change held messages, and operators add none. So what is counted after an
//! action was numbered is what was there, or what an action with a later number took away.

use std::collections::BTreeSet;
use std::ops::Bound;

use outboxd_core::{Hold, HoldState, KeyHash};
use outboxd_engine::{Due, HeldChange, HeldCount, HeldSignal, OutboxError, Release, ReleaseQuery};
use sqlx::{Row, SqlStr};

use crate::outbox::PostgresOutbox;
use crate::read::{clock, message};
use crate::session::{Call, CallError};

/// Keys named in one signal.
const UNBLOCKED_MAX: usize = 10_000;

/// Due messages that one release looks at, each by a probe of its key.
const SCANNED_MAX: i64 = 4_000;

/// Due messages that are put behind what blocks them in one go.
const DEMOTED_MAX: i64 = 20_000;

/// Messages that are walked over by one statement: some thousand blocks, read in their order.
pub(crate) const WALKED_MAX: i64 = 50_000;

/// A walk over all held messages, a page a call.
#[derive(Debug, Default)]
pub(crate) struct Walk {
    last: Option<i64>,
    is_complete: bool,
    /// The key of each message that has one.
    keys: Vec<i64>,
    /// The key of each message that blocks it.
    blocked: Vec<i64>,
}

impl Walk {
    pub(crate) fn is_complete(&self) -> bool {
        self.is_complete
    }

    /// Reads the next page.
    pub(crate) async fn go_on(&mut self, mut call: Call<'_>, held_counts: SqlStr) -> Result<(), OutboxError> {
        let from = self.last.unwrap_or(i64::MIN);
        let row = call.row(sqlx::query(held_counts).bind(from).bind(WALKED_MAX)).await?;
        let messages: i64 = call.value(row.try_get("messages"))?;
        self.last = call.value(row.try_get::<Option<i64>, _>("last"))?.or(self.last);
        self.keys.extend(call.value(row.try_get::<Vec<i64>, _>("keys"))?);
        self.blocked.extend(call.value(row.try_get::<Vec<i64>, _>("blocked"))?);
        self.is_complete = messages < WALKED_MAX;
        call.done();
        Ok(())
    }

    /// How many messages each key has, and the keys that nothing blocks.
    pub(crate) fn counts(mut self) -> (Vec<HeldCount>, BTreeSet<i64>) {
        self.keys.sort_unstable();
        self.blocked.sort_unstable();
        let (mut counts, mut unblocked) = (Vec::new(), BTreeSet::new());
        for messages in self.keys.chunk_by(|one, next| one == next) {
            if let Some(&key) = messages.first() {
                counts.push(HeldCount {
                    key_hash: KeyHash::from_i64(key),
                    messages: u32::try_from(messages.len()).unwrap_or(u32::MAX),
                });
                if self.blocked.binary_search(&key).is_err() {
                    unblocked.insert(key);
                }
            }
        }
        (counts, unblocked)
    }
}

/// What is known of the held messages within a term.
#[derive(Debug, Default)]
pub(crate) struct HeldMemory {
    /// The operator action up to which `suspects` are complete; `None`: the table must be walked.
    walked: Option<i64>,
    /// Keys that may have followers alone.
    suspects: BTreeSet<i64>,
    /// The last of them that was asked about.
    asked_to: i64,
    /// Counts changes: an answer that was asked for before one says nothing about what came with it.
    changes: u64,
}

/// What a settle did to the held messages.
#[derive(Debug, Default)]
pub(crate) struct Touched {
    /// Keys that may have followers alone now.
    pub(crate) keys: BTreeSet<i64>,
}

impl Touched {
    /// What is known before the database has answered; it adds the keys that were dispatched or skipped.
    pub(crate) fn by(holds: &[Hold]) -> Self {
        // The one that a follower waits for may have left already.
        let behind = holds.iter().filter(|hold| hold.state == HoldState::Behind);
        Self { keys: behind.filter_map(|hold| hold.key_hash).map(KeyHash::to_i64).collect() }
    }
}

impl HeldMemory {
    /// The table was walked after the operator action with this number.
    pub(crate) fn walked(&mut self, actions: i64, unblocked: BTreeSet<i64>) {
        self.changes += 1;
        self.walked = Some(actions);
        self.suspects.extend(unblocked);
    }

    /// A settle was written.
    pub(crate) fn settled(&mut self, touched: Touched) {
        if !touched.keys.is_empty() {
            self.changes += 1;
            self.suspects.extend(touched.keys);
        }
    }
}

impl PostgresOutbox {
    pub(crate) async fn held_signal(&self, topics_held: &[String]) -> Result<HeldSignal, OutboxError> {
        let mut call = self.rest_session.call("look at held messages").await?;
        let row = call.row(sqlx::query(self.sql.held_signal.clone()).bind(topics_held.to_vec())).await?;
        let messages: i64 = call.value(row.try_get("messages"))?;
        let due: bool = call.value(row.try_get("due"))?;
        let actions: i64 = call.value(row.try_get("actions"))?;
        call.done();
        let walked = self.memory().held.walked == Some(actions);
        if !walked {
            let (_, unblocked) = self.walk_held().await?;
            self.memory().held.walked(actions, unblocked);
        }
        let unblocked = self.unblocked(topics_held).await?;
        Ok(HeldSignal { messages: u64::try_from(messages).unwrap_or(0), due, unblocked, actions })
    }

    async fn walk_held(&self) -> Result<(Vec<HeldCount>, BTreeSet<i64>), OutboxError> {
        let mut walk = Walk::default();
        while !walk.is_complete() {
            let call = self.rest_session.call("count held messages").await?;
            walk.go_on(call, self.sql.held_counts.clone()).await?;
        }
        Ok(walk.counts())
    }

    /// The keys that nothing blocks and whose topic can be written to.
    async fn unblocked(&self, topics_held: &[String]) -> Result<Vec<KeyHash>, OutboxError> {
        let (asked, changes) = {
            let memory = self.memory();
            // In turn: those whose topic cannot be written to stay, and must not keep the others from being asked about.
            let (done, next) =
                (..=memory.held.asked_to, (Bound::Excluded(memory.held.asked_to), Bound::Unbounded));
            let in_turn = memory.held.suspects.range(next).chain(memory.held.suspects.range(done));
            let asked: Vec<i64> = in_turn.copied().take(UNBLOCKED_MAX).collect();
            (asked, memory.held.changes)
        };
        if asked.is_empty() {
            return Ok(Vec::new());
        }
        let mut call = self.rest_session.call("look at held messages").await?;
        let statement =
            sqlx::query(self.sql.held_unblocked.clone()).bind(asked.clone()).bind(topics_held.to_vec());
        let rows = call.rows(statement).await?;
        let (mut unblocked, mut can_go) = (BTreeSet::new(), Vec::new());
        for row in &rows {
            let key: i64 = call.value(row.try_get("key_hash"))?;
            unblocked.insert(key);
            if call.value(row.try_get("can_go"))? {
                can_go.push(KeyHash::from_i64(key));
            }
        }
        call.done();
        let mut memory = self.memory();
        memory.held.asked_to = asked.last().copied().unwrap_or_default();
        if memory.held.changes == changes {
            // The others are blocked again, or gone; what changes that names them anew.
            for key in asked.iter().filter(|key| !unblocked.contains(key)) {
                memory.held.suspects.remove(key);
            }
        }
        Ok(can_go)
    }

    /// Counts come before messages: a count that lacks a message which is then released would free its key too early. One
    /// that is discarded in between is counted and does not come; its action has a later number, and the counts come again. One
    /// that an operator or the sweep puts there in between is not counted: then nothing is released in this round.
    pub(crate) async fn held_due(&self, query: &ReleaseQuery, actions: i64) -> Result<Release, OutboxError> {
        let limit = i64::from(query.limit.messages.max(1));
        let promoted = self.promote_scheduled(query.term, limit).await?;
        let now = self.operator_actions().await?;
        let change = if now == actions {
            None
        } else {
            let (held, unblocked) = self.walk_held().await?;
            self.memory().held.walked(now, unblocked);
            Some(HeldChange { held, actions: now })
        };
        let mut call = self.rest_session.call("read due messages").await?;
        let rows = call
            .rows(
                sqlx::query(self.sql.held_due.clone())
                    .bind(query.topics_held.clone())
                    .bind(query.unblocked.iter().map(|key| key.to_i64()).collect::<Vec<_>>())
                    .bind(limit)
                    .bind(i64::try_from(query.limit.bytes.max(1)).unwrap_or(i64::MAX))
                    .bind(SCANNED_MAX.max(limit)),
            )
            .await?;
        let mut due = Vec::with_capacity(rows.len());
        for row in &rows {
            let attempts: i32 = call.value(row.try_get("attempts"))?;
            let Some(clock) = clock(call.value(row.try_get("clock_us"))?) else {
                return Err(call.failed(CallError::Client("the clock is out of range".into())));
            };
            due.push(Due {
                message: call.value(message(row, 2, clock))?,
                attempts: u32::try_from(attempts).unwrap_or(0),
                key_hash: call.value(row.try_get::<Option<i64>, _>("key_hash"))?.map(KeyHash::from_i64),
            });
        }
        if i64::try_from(due.len()).is_ok_and(|len| len < limit) {
            // What made the loop ask and did not come is blocked.
            let rows = call
                .rows(
                    sqlx::query(self.sql.held_demote.clone())
                        .bind(query.topics_held.clone())
                        .bind(DEMOTED_MAX),
                )
                .await?;
            let demoted: Result<BTreeSet<i64>, _> = rows.iter().map(|row| row.try_get("key_hash")).collect();
            self.memory().held.settled(Touched { keys: call.value(demoted)? });
        }
        call.done();
        if !due.is_empty() && self.operator_actions().await? != now {
            due.clear();
        }
        Ok(Release { due, change, promoted })
    }

    async fn operator_actions(&self) -> Result<i64, OutboxError> {
        let mut call = self.rest_session.call("read due messages").await?;
        let row = call.row(sqlx::query(self.sql.held_actions.clone())).await?;
        let actions = call.value(row.try_get("actions"))?;
        call.done();
        Ok(actions)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_walk_counts_each_key_and_names_those_that_nothing_blocks() {
        let walk = Walk { keys: vec![7, -1, 7, 3, 7], blocked: vec![7, 3], ..Walk::default() };
        let (counts, unblocked) = walk.counts();
        let counts: Vec<_> = counts.iter().map(|count| (count.key_hash.to_i64(), count.messages)).collect();
        assert_eq!(counts, [(-1, 1), (3, 1), (7, 3)]);
        assert_eq!(unblocked.into_iter().collect::<Vec<_>>(), [-1]);
        assert_eq!(Walk::default().counts(), (Vec::new(), BTreeSet::new()));
    }
}
