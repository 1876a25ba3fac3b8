//! Settling: cursor, receipts and holds in one transaction, fenced by epoch, nonce and the cursor that must still be there.

use std::time::Duration;

use outboxd_core::{Cursor, Hold, ReceiptEntry, Scheduled, Seq, receipts};
use outboxd_engine::{OutboxError, Settlement};
use sqlx::{Connection, Row, SqliteConnection};
use tokio::time::timeout;
use uuid::Uuid;

use crate::lead::{lost, refused};
use crate::outbox::SqliteOutbox;
use crate::row;
use crate::session::Failure;

impl SqliteOutbox {
    pub(crate) async fn store_settlement(&self, settlement: Settlement) -> Result<(), OutboxError> {
        const DOING: &str = "settle";
        let file = self.term_file()?;
        let Some(mut lent) = self.lead_session.lend_open(&self.config, DOING, &file).await? else {
            return Err(lost(DOING));
        };
        let outcome =
            timeout(lent.deadline(), settle(lent.connection(), settlement, self.config.lease)).await;
        lent.finish(DOING, outcome)
    }
}

async fn settle(
    connection: &mut SqliteConnection,
    mut settlement: Settlement,
    lease: Duration,
) -> Result<(), Failure> {
    let Settlement { term, before, after, .. } = &settlement;
    // Dropped without a commit, on every error below, it rolls back.
    let mut transaction = connection.begin_with("begin immediate").await?;
    let moved = sqlx::query(include_str!("sql/settle_cursor.sql"))
        .bind(term.epoch)
        .bind(term.nonce.to_string())
        .bind(before.high.0)
        .bind(after.high.0)
        .bind(lease.as_secs_f64())
        .bind(settlement.trial.map(|trial| trial.seq.0))
        .bind(settlement.trial.map_or(0, |trial| trial.trials))
        .bind(settlement.proves_term)
        .execute(&mut *transaction)
        .await?;
    if moved.rows_affected() != 1 {
        return Err(OutboxError::Fenced.into());
    }
    let (epoch, cursors) = (term.epoch, (before.clone(), after.clone()));
    store_receipts(&mut transaction, epoch, &cursors, false, &mut settlement.receipts).await?;
    for mut run in receipts::runs(settlement.receipts_out_of_order) {
        store_receipts(&mut transaction, epoch, &cursors, true, &mut run).await?;
    }
    for seq in &settlement.released {
        sqlx::query(include_str!("sql/settle_release.sql")).bind(seq.0).execute(&mut *transaction).await?;
    }
    for hold in &settlement.holds {
        store_hold(&mut transaction, hold, &settlement.before).await?;
    }
    for scheduled in &settlement.scheduled {
        store_scheduled(&mut transaction, scheduled).await?;
    }
    transaction.commit().await?;
    Ok(())
}

async fn store_receipts(
    connection: &mut SqliteConnection,
    epoch: i64,
    (before, after): &(Cursor, Cursor),
    out_of_order: bool,
    entries: &mut [ReceiptEntry],
) -> Result<(), Failure> {
    let packed = receipts::encode(entries);
    let (Some(first), Some(last)) = (entries.first(), entries.last()) else { return Ok(()) };
    sqlx::query(include_str!("sql/settle_receipts.sql"))
        .bind(epoch)
        .bind(out_of_order)
        .bind(before.to_string())
        .bind(after.to_string())
        .bind(first.seq.0)
        .bind(last.seq.0)
        .bind(i64::try_from(entries.len()).unwrap_or(i64::MAX))
        .bind(packed)
        .execute(connection)
        .await?;
    Ok(())
}

/// The id of an intent that is about to be set aside.
async fn id_of(connection: &mut SqliteConnection, seq: Seq) -> Result<Uuid, Failure> {
    let stored = sqlx::query(include_str!("sql/message_id.sql"))
        .bind(seq.0)
        .fetch_optional(&mut *connection)
        .await?
        .ok_or_else(|| {
            refused(
                format!("the intent with seq {seq} was deleted before it was delivered"),
                "find out who dropped the triggers of outbox_message and restore them",
            )
        })?;
    Ok(row::id(stored.try_get("id")?).unwrap_or_default())
}

async fn store_scheduled(connection: &mut SqliteConnection, scheduled: &Scheduled) -> Result<(), Failure> {
    let id = id_of(connection, scheduled.seq).await?;
    sqlx::query(include_str!("sql/settle_schedule.sql"))
        .bind(scheduled.seq.0)
        .bind(id.to_string())
        .bind(&scheduled.topic)
        .bind(scheduled.key_hash.map(outboxd_core::KeyHash::to_i64))
        .execute(connection)
        .await?;
    Ok(())
}

async fn store_hold(connection: &mut SqliteConnection, hold: &Hold, before: &Cursor) -> Result<(), Failure> {
    let id = id_of(connection, hold.seq).await?;
    sqlx::query(include_str!("sql/settle_hold.sql"))
        .bind(hold.seq.0)
        .bind(id.to_string())
        .bind(&hold.topic)
        .bind(hold.key_hash.map(outboxd_core::KeyHash::to_i64))
        .bind(hold.state.as_str())
        .bind(hold.reason.as_str())
        .bind(&hold.error)
        .bind(hold.attempts)
        .bind(hold.due_in.as_secs_f64())
        .bind(before.high.0)
        .bind(&hold.dead_letter)
        .execute(connection)
        .await?;
    Ok(())
}
