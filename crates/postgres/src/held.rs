//! Held messages, as the loop asks about them.

use outboxd_core::KeyHash;
use outboxd_engine::{Due, HeldChange, HeldSignal, OutboxError, ReleaseQuery};
use sqlx::{Row, SqlSafeStr};

use crate::lead::held_counts;
use crate::outbox::{HeldMemory, PostgresOutbox};
use crate::read::{clock, message};
use crate::session::{Call, CallError};

impl HeldMemory {
    /// A settle has added or removed held messages.
    pub(crate) fn changed(&mut self) {
        self.known = None;
        self.changes += 1;
    }
}

impl PostgresOutbox {
    /// Cheap while nothing changes: the table as a whole is looked at only after a settle touched it or an operator acted. Due
    /// times pass by themselves and are asked for every time.
    pub(crate) async fn held_signal(&self, topics_held: &[String]) -> Result<HeldSignal, OutboxError> {
        let mut call = self.rest_session.call("look at held messages").await?;
        let row = call.row(sqlx::query(self.sql.held_signal.clone()).bind(topics_held.to_vec())).await?;
        let due: bool = call.value(row.try_get("due"))?;
        let actions: i64 = call.value(row.try_get("actions"))?;
        let (known, changes) = {
            let memory = self.memory();
            let known = memory.held.known.clone().filter(|_| memory.held.actions == actions);
            (known, memory.held.changes)
        };
        let (messages, unblocked) = match known {
            Some(known) => known,
            None => {
                let looked = self.look_at_held(&mut call).await?;
                let mut memory = self.memory();
                if memory.held.changes == changes {
                    memory.held.known = Some(looked.clone());
                    memory.held.actions = actions;
                }
                looked
            }
        };
        call.done();
        Ok(HeldSignal { messages, due, unblocked, actions })
    }

    async fn look_at_held(&self, call: &mut Call<'_>) -> Result<(u64, Vec<KeyHash>), OutboxError> {
        let row = call.row(sqlx::query(self.sql.held_unblocked.clone())).await?;
        let messages: i64 = call.value(row.try_get("messages"))?;
        let unblocked: Vec<i64> = call.value(row.try_get("unblocked"))?;
        Ok((u64::try_from(messages).unwrap_or(0), unblocked.into_iter().map(KeyHash::from_i64).collect()))
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
        let row = call.row(sqlx::query(self.sql.held_signal.clone()).bind(query.topics_held.clone())).await?;
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
        let rows = call
            .rows(
                sqlx::query(self.sql.held_due.clone())
                    .bind(query.topics_held.clone())
                    .bind(query.unblocked.iter().map(|key| key.to_i64()).collect::<Vec<_>>())
                    .bind(i64::from(query.limit.messages.max(1)))
                    .bind(i64::try_from(query.limit.bytes.max(1)).unwrap_or(i64::MAX)),
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
        call.done();
        Ok((due, change))
    }
}
