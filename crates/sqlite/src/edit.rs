//! Editing a held message. The intent stays as it is; the edit is applied when the message is published.

use std::collections::BTreeSet;

use outboxd_core::{KeyHash, Seq};
use outboxd_engine::operate::{EditDone, EditRefusal, Editable, HeldEdit};
use outboxd_engine::{AuditedAction, HeldId, OperateError};
use sqlx::sqlite::SqliteRow;
use sqlx::{Connection, Row, SqliteConnection};
use tokio::time::timeout;

use crate::operator::{Audited, NotDone, SqliteOperator, carried, undecodable};
use crate::row;

impl SqliteOperator {
    pub(crate) async fn edit(
        &self,
        named: HeldId,
        change: &HeldEdit,
        action: &AuditedAction,
    ) -> Result<EditDone, OperateError> {
        const DOING: &str = "edit a held message";
        let mut lent = self.session.lend(&self.config, DOING, None).await?;
        let editing = async { carried(named.id, edit(lent.connection(), named, change, action).await) };
        let outcome = timeout(self.config.deadline, editing).await;
        lent.finish(DOING, outcome)?
    }
}

async fn edit(
    connection: &mut SqliteConnection,
    named: HeldId,
    change: &HeldEdit,
    action: &AuditedAction,
) -> Result<EditDone, NotDone> {
    // Dropped without a commit, on every error below, it rolls back.
    let mut transaction = connection.begin_with("begin immediate").await?;
    let rows = sqlx::query(include_str!("sql/held_editable.sql"))
        .bind(named.id.to_string())
        .bind(named.seq.map(|seq| seq.0))
        .fetch_all(&mut *transaction)
        .await?;
    let [row] = rows.as_slice() else {
        let seqs: Result<Vec<i64>, _> = rows.iter().map(|row| row.try_get("seq")).collect();
        let seqs: Vec<Seq> = seqs?.into_iter().map(Seq).collect();
        return Err(if seqs.is_empty() { NotDone::NotHeld } else { NotDone::Several(seqs) });
    };
    if let Some(head) = row.try_get::<Option<String>, _>("head")? {
        return Err(NotDone::Behind(head.parse().map_err(|error| undecodable("head", error))?));
    }
    if row.try_get("is_due")? {
        return Err(NotDone::Edit(EditRefusal::Due));
    }
    let stored = change.apply(&editable(row)?).map_err(NotDone::Edit)?;
    let seq: i64 = row.try_get("seq")?;
    sqlx::query(include_str!("sql/held_edit.sql"))
        .bind(seq)
        .bind(serde_json::to_string(&stored.edited).map_err(|error| undecodable("edited", error))?)
        .bind(&stored.topic)
        .bind(stored.partition)
        .bind(stored.headers.to_string())
        .bind(change.payload.as_deref())
        .execute(&mut *transaction)
        .await?;
    sqlx::query(include_str!("sql/held_move.sql"))
        .bind(seq)
        .bind(&stored.destination)
        .bind(stored.key_hash.map(KeyHash::to_i64))
        .bind(change.retry)
        .execute(&mut *transaction)
        .await?;
    if stored.destination.is_some() {
        // What waited behind it goes without it.
        sqlx::query(include_str!("sql/held_promote.sql"))
            .bind(row.try_get::<Option<i64>, _>("key_hash")?)
            .execute(&mut *transaction)
            .await?;
    }
    let correlation_id: &[u8] = row.try_get("correlation_id")?;
    let audited = Audited {
        kind: "edit",
        id: named.id.to_string(),
        seq,
        topic: row.try_get("held_topic")?,
        reason: row.try_get("reason")?,
        correlation_id: String::from_utf8_lossy(correlation_id).into_owned(),
        details: Some(stored.details.to_string()),
    };
    audited.write(&mut transaction, action).await?;
    transaction.commit().await?;
    Ok(EditDone { seq: Seq(seq), details: stored.details })
}

fn editable(row: &SqliteRow) -> Result<Editable, NotDone> {
    let size = |column: &str| {
        let bytes: Option<i64> = row.try_get(column)?;
        Ok::<_, sqlx::Error>(bytes.and_then(|bytes| usize::try_from(bytes).ok()))
    };
    let edited: String = row.try_get("edited")?;
    let edited: BTreeSet<String> =
        serde_json::from_str(&edited).map_err(|error| undecodable("edited", error))?;
    Ok(Editable {
        topic: row::text(row, "topic")?.unwrap_or_default(),
        key: row::text(row, "key")?,
        partition: row.try_get("partition")?,
        headers: row::headers(row::text(row, "headers")?).unwrap_or_default(),
        payload_bytes: size("payload_bytes")?,
        other_bytes: size("other_bytes")?.unwrap_or(0),
        edited,
        max_message_bytes: size("max_message_bytes")?.unwrap_or(usize::MAX),
    })
}
