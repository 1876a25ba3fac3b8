//! Held messages, as the loop asks about them.
//!
//! The loop asks a few times a second while anything is held, and a topic that is missing for a day may have held a million
//! messages by then. So the table as a whole is walked once a term and after an operator acted; otherwise a settle says
//! by how many it changed the number and which keys it may have unblocked, and only those are asked about.

use std::collections::BTreeSet;

use outboxd_core::{Hold, HoldState, KeyHash};
use outboxd_engine::{Due, HeldChange, HeldSignal, OutboxError, ReleaseQuery};
use sqlx::{Row, SqlSafeStr};

use crate::lead::held_counts;
use crate::outbox::PostgresOutbox;
use crate::read::{clock, message};
use crate::session::{Call, CallError};

/// Keys named in one signal.
const UNBLOCKED_MAX: usize = 10_000;

/// Due messages that one release looks at, each by a probe of its key.
const SCANNED_MAX: i64 = 4_000;

/// Due messages that are put behind what blocks them in one go.
const DEMOTED_MAX: i64 = 20_000;

/// What is known of the held messages within a term.
#[derive(Debug, Default)]
pub(crate) struct HeldMemory {
    /// Their number and the operator action up to which it holds; `None`: the table must be walked.
    counted: Option<(i64, i64)>,
    /// Keys that may have followers alone.
    suspects: BTreeSet<i64>,
    /// Topics that could not be written to when no message waited for another one.
    idle_topics: Option<Vec<String>>,
    /// Counts changes: an answer that was asked for before one says nothing about what came with it.
    changes: u64,
}

/// What a settle did to the held messages.
#[derive(Debug, Default)]
pub(crate) struct Touched {
    /// By how many there are more of them.
    pub(crate) held_more: i64,
    /// Keys that may have followers alone now.
    pub(crate) keys: BTreeSet<i64>,
    topics: BTreeSet<String>,
    anything: bool,
}

impl Touched {
    /// What is known before the database has answered.
    pub(crate) fn by(holds: &[Hold]) -> Self {
        let mut touched = Self { anything: !holds.is_empty(), ..Self::default() };
        for hold in holds {
            match hold.state {
                // The one it waits for may have left already.
                HoldState::Behind => touched.keys.extend(hold.key_hash.map(KeyHash::to_i64)),
                HoldState::Topic => {
                    touched.topics.insert(hold.topic.clone());
                }
                HoldState::Retry | HoldState::Parked => {}
            }
        }
        touched
    }
}

impl HeldMemory {
    /// A settle was written.
    pub(crate) fn settled(&mut self, touched: Touched) {
        if !touched.anything && touched.keys.is_empty() && touched.held_more == 0 {
            return;
        }
        self.changes += 1;
        if let Some((messages, _)) = &mut self.counted {
            *messages += touched.held_more;
        }
        self.suspects.extend(touched.keys);
        let still_idle = |idle: &Vec<String>| touched.topics.iter().all(|topic| idle.contains(topic));
        self.idle_topics = self.idle_topics.take().filter(still_idle);
    }
}

impl PostgresOutbox {
    pub(crate) async fn held_signal(&self, topics_held: &[String]) -> Result<HeldSignal, OutboxError> {
        let (idle, changes) = {
            let memory = self.memory();
            (memory.held.idle_topics.as_deref() == Some(topics_held), memory.held.changes)
        };
        let mut call = self.rest_session.call("look at held messages").await?;
        let row = call
            .row(sqlx::query(self.sql.held_signal.clone()).bind(topics_held.to_vec()).bind(!idle))
            .await?;
        let due: bool = call.value(row.try_get("due"))?;
        let topic_due: bool = call.value(row.try_get("topic_due"))?;
        let actions: i64 = call.value(row.try_get("actions"))?;
        let (messages, unblocked) = self.unblocked(&mut call, topics_held, actions).await?;
        call.done();
        let mut memory = self.memory();
        if memory.held.changes == changes {
            memory.held.idle_topics = (!topic_due).then(|| topics_held.to_vec());
        }
        Ok(HeldSignal { messages, due: due || topic_due, unblocked, actions })
    }

    /// The number of held messages and the keys that nothing blocks and whose topic can be written to.
    async fn unblocked(
        &self,
        call: &mut Call<'_>,
        topics_held: &[String],
        actions: i64,
    ) -> Result<(u64, Vec<KeyHash>), OutboxError> {
        let (counted, mut suspects, changes) = {
            let memory = self.memory();
            let counted = memory.held.counted.filter(|(_, known)| *known == actions);
            (counted, memory.held.suspects.clone(), memory.held.changes)
        };
        let messages = match counted {
            Some((messages, _)) => messages,
            None => {
                let row = call.row(sqlx::query(self.sql.held_all.clone())).await?;
                suspects.extend(call.value(row.try_get::<Vec<i64>, _>("unblocked"))?);
                call.value(row.try_get("messages"))?
            }
        };
        let asked: Vec<i64> = suspects.iter().copied().take(UNBLOCKED_MAX).collect();
        let mut can_go = Vec::new();
        if !asked.is_empty() {
            let rows = call
                .rows(
                    sqlx::query(self.sql.held_unblocked.clone())
                        .bind(asked.clone())
                        .bind(topics_held.to_vec()),
                )
                .await?;
            // The others are blocked again, or gone; what changes that names them anew.
            for key in asked {
                suspects.remove(&key);
            }
            for row in &rows {
                let key: i64 = call.value(row.try_get("key_hash"))?;
                suspects.insert(key);
                if call.value(row.try_get("can_go"))? {
                    can_go.push(KeyHash::from_i64(key));
                }
            }
        }
        let mut memory = self.memory();
        if memory.held.changes == changes {
            memory.held.counted = Some((messages, actions));
            memory.held.suspects = suspects;
        }
        Ok((u64::try_from(messages).unwrap_or(0), can_go))
    }

    /// Counts and messages come from one snapshot: a count that lacks a message which is then released would free its key too
    /// early.
    pub(crate) async fn held_due(
        &self,
        query: &ReleaseQuery,
        actions: i64,
    ) -> Result<(Vec<Due>, Option<HeldChange>), OutboxError> {
        let mut call = self.rest_session.call("read due messages").await?;
        call.script("begin isolation level repeatable read read only".into_sql_str()).await?;
        let row = call
            .row(sqlx::query(self.sql.held_signal.clone()).bind(query.topics_held.clone()).bind(false))
            .await?;
        let change = if call.value(row.try_get::<i64, _>("actions"))? == actions {
            None
        } else {
            let rows = call.rows(sqlx::query(self.sql.held_counts.clone())).await?;
            let actions = match rows.first() {
                Some(row) => call.value(row.try_get("actions"))?,
                None => return Err(call.failed(CallError::Client("counts without a row".into()))),
            };
            Some(HeldChange { held: call.value(held_counts(&rows))?, actions })
        };
        let limit = i64::from(query.limit.messages.max(1));
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
        call.script("commit".into_sql_str()).await?;
        let mut due = Vec::with_capacity(rows.len());
        for row in &rows {
            let attempts: i32 = call.value(row.try_get("attempts"))?;
            let Some(clock) = clock(call.value(row.try_get("clock_us"))?) else {
                return Err(call.failed(CallError::Client("the clock is out of range".into())));
            };
            due.push(Due {
                message: call.value(message(row, 2, clock))?,
                attempts: u32::try_from(attempts).unwrap_or(0),
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
            self.memory().held.settled(Touched { keys: call.value(demoted)?, ..Touched::default() });
        }
        call.done();
        Ok((due, change))
    }
}
