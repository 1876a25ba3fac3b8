//! Settling: one fenced statement for the cursor, the receipts and the held messages.

use outboxd_core::{Hold, HoldState, KeyHash, ReceiptEntry, Seq, receipts};
use outboxd_engine::{OutboxError, Settlement};
use sqlx::Row;

use crate::held::Touched;
use crate::outbox::PostgresOutbox;

impl PostgresOutbox {
    pub(crate) async fn settle_page(&self, settlement: Settlement) -> Result<(), OutboxError> {
        let Settlement {
            term,
            before,
            after,
            receipts,
            receipts_out_of_order,
            holds,
            released,
            scheduled,
            trial,
            proves_term,
        } = settlement;
        let bound = self.memory().bounds.of(after.high).map(|bound| bound.to_string());
        let packed = Packed::of(receipts, receipts_out_of_order);
        let mut touched = Touched::by(&holds);
        let columns = HoldColumns::of(holds);
        let catch_up = |cursor: &outboxd_core::Cursor| {
            cursor.catch_up.as_ref().map(|c| (c.pos.0, c.until.as_str().to_owned())).unzip()
        };
        let ((before_pos, before_until), (after_pos, after_until)) = (catch_up(&before), catch_up(&after));
        let mut call = self.lead_session.call_if_open("settle page").await?;
        let statement = sqlx::query(self.sql.settle.clone())
            .bind(term.epoch)
            .bind(term.nonce)
            .bind(before.high.0)
            .bind(before.seen.as_str())
            .bind(before_pos)
            .bind(before_until)
            .bind(after.high.0)
            .bind(after.seen.as_str())
            .bind(after_pos)
            .bind(after_until)
            .bind(bound)
            .bind(before.to_string())
            .bind(after.to_string())
            .bind(packed.out_of_order)
            .bind(packed.first)
            .bind(packed.last)
            .bind(packed.messages)
            .bind(packed.receipts)
            .bind(columns.seq)
            .bind(columns.topic)
            .bind(columns.key_hash)
            .bind(columns.state)
            .bind(columns.reason)
            .bind(columns.error)
            .bind(columns.attempts)
            .bind(columns.due_us)
            .bind(released.iter().map(|seq| seq.0).collect::<Vec<_>>())
            .bind(scheduled.iter().map(|scheduled| scheduled.seq.0).collect::<Vec<_>>())
            .bind(scheduled.iter().map(|scheduled| scheduled.topic.clone()).collect::<Vec<_>>())
            .bind(
                scheduled.iter().map(|scheduled| scheduled.key_hash.map(KeyHash::to_i64)).collect::<Vec<_>>(),
            )
            .bind(columns.dead_letter)
            .bind(trial.map(|trial| trial.seq.0))
            .bind(trial.map_or(0, |trial| i32::try_from(trial.trials).unwrap_or(i32::MAX)))
            .bind(proves_term);
        let rows = call.rows(statement).await?;
        let Some(row) = rows.first() else {
            call.done();
            return Err(OutboxError::Fenced);
        };
        touched.keys.extend(call.value(row.try_get::<Vec<i64>, _>("keys_released"))?);
        call.done();
        self.memory().held.settled(touched);
        Ok(())
    }
}

/// Receipts as rows: one in order, the others out of order and none of them wide; none that would be empty.
#[derive(Debug, Default)]
struct Packed {
    out_of_order: Vec<bool>,
    first: Vec<i64>,
    last: Vec<i64>,
    messages: Vec<i32>,
    receipts: Vec<Vec<u8>>,
}

impl Packed {
    fn of(in_order: Vec<ReceiptEntry>, out_of_order: Vec<ReceiptEntry>) -> Self {
        let mut packed = Self::default();
        let runs = receipts::runs(out_of_order).into_iter().map(|run| (run, true));
        for (mut entries, apart) in std::iter::once((in_order, false)).chain(runs) {
            let bytes = receipts::encode(&mut entries);
            if let (Some(first), Some(last)) = (entries.first(), entries.last()) {
                packed.out_of_order.push(apart);
                packed.first.push(first.seq.0);
                packed.last.push(last.seq.0);
                packed.messages.push(i32::try_from(entries.len()).unwrap_or(i32::MAX));
                packed.receipts.push(bytes);
            }
        }
        packed
    }
}

/// Holds, column by column.
#[derive(Debug, Default)]
struct HoldColumns {
    seq: Vec<i64>,
    topic: Vec<String>,
    key_hash: Vec<Option<i64>>,
    state: Vec<&'static str>,
    reason: Vec<&'static str>,
    error: Vec<Option<String>>,
    attempts: Vec<i32>,
    due_us: Vec<Option<i64>>,
    dead_letter: Vec<Option<String>>,
}

impl HoldColumns {
    fn of(holds: Vec<Hold>) -> Self {
        let mut columns = Self::default();
        for hold in holds {
            let Hold { seq: Seq(seq), topic, key_hash, state, reason, error, attempts, due_in, dead_letter } =
                hold;
            columns.seq.push(seq);
            columns.dead_letter.push(dead_letter);
            columns.topic.push(topic);
            columns.key_hash.push(key_hash.map(KeyHash::to_i64));
            columns.state.push(state.as_str());
            columns.reason.push(reason.as_str());
            columns.error.push(error);
            columns.attempts.push(i32::try_from(attempts).unwrap_or(i32::MAX));
            columns.due_us.push(match state {
                HoldState::Retry => Some(i64::try_from(due_in.as_micros()).unwrap_or(i64::MAX)),
                HoldState::Topic | HoldState::Behind | HoldState::Parked => None,
            });
        }
        columns
    }
}
