//! Editing a held message, and the audit of everything that was done to one.

use std::collections::BTreeSet;

use outboxd_core::{HoldState, Seq};
use outboxd_engine::operate::{EditDone, EditRefusal, Editable, HeldEdit};
use outboxd_engine::{AuditFilter, AuditLine, AuditedAction, HeldId, OperateError, OutboxError};
use sqlx::postgres::PgRow;
use sqlx::{Row, SqlSafeStr};
use uuid::Uuid;

use super::PostgresOperator;
use super::held::{micros, the_only, word};
use crate::read::header_list;
use crate::schema::render;
use crate::session::Call;

impl PostgresOperator {
    pub(super) async fn edit_held(
        &self,
        named: HeldId,
        edit: &HeldEdit,
        action: &AuditedAction,
    ) -> Result<EditDone, OperateError> {
        let mut call = self.session.call("edit held message").await?;
        call.script("begin".into_sql_str()).await?;
        let edited = self.edit_within(&mut call, named, edit, action).await;
        // A call that fails closes its connection, which rolls back; what is refused leaves the connection as it was.
        if !matches!(edited, Err(OperateError::Outbox(_))) {
            let end = if edited.is_ok() { "commit" } else { "rollback" };
            call.script(end.into_sql_str()).await?;
            call.done();
        }
        edited
    }

    async fn edit_within(
        &self,
        call: &mut Call<'_>,
        named: HeldId,
        edit: &HeldEdit,
        action: &AuditedAction,
    ) -> Result<EditDone, OperateError> {
        let sql = render(include_str!("../sql/operate_held_editable.sql"), &self.config.schema);
        let seq = named.seq.map(|seq| seq.0);
        let rows = call.rows(sqlx::query(sql).persistent(false).bind(named.id).bind(seq)).await?;
        let seqs: Result<Vec<i64>, _> = rows.iter().map(|row| row.try_get("seq")).collect();
        the_only(named.id, call.value(seqs)?)?;
        let Some(row) = rows.first() else { return Err(OperateError::NotHeld(named.id)) };
        let seq: i64 = call.value(row.try_get("seq"))?;
        let head: Option<Uuid> = call.value(row.try_get("head"))?;
        if let Some(head) = head {
            return Err(OperateError::Behind { id: named.id, head });
        }
        let refused = |refusal| OperateError::Edit { id: named.id, refusal };
        if call.value(row.try_get("is_due"))? {
            return Err(refused(EditRefusal::Due));
        }
        let message = call.value(editable(row))?;
        let stored = edit.apply(&message).map_err(refused)?;
        let sql = render(include_str!("../sql/operate_held_edit.sql"), &self.config.schema);
        let statement = sqlx::query(sql)
            .persistent(false)
            .bind(seq)
            .bind(stored.edited)
            .bind(stored.topic)
            .bind(stored.partition)
            .bind(stored.headers)
            .bind(edit.payload.as_deref())
            .bind(stored.key_hash.map(outboxd_core::KeyHash::to_i64))
            .bind(edit.retry)
            .bind(&action.who)
            .bind(&action.why)
            .bind(&stored.details)
            .bind(stored.destination);
        call.execute(statement).await?;
        Ok(EditDone { seq: Seq(seq), details: stored.details })
    }

    pub(super) async fn list_audit(&self, filter: &AuditFilter) -> Result<Vec<AuditLine>, OutboxError> {
        let mut call = self.session.call("read the audit").await?;
        let sql = render(include_str!("../sql/operate_held_audit.sql"), &self.config.schema);
        let statement = sqlx::query(sql)
            .persistent(false)
            .bind(filter.id)
            .bind(filter.topic.as_ref().map(|topic| topic.like()))
            .bind(filter.kind.as_deref())
            .bind(filter.who.as_deref())
            .bind(filter.older_than.map(micros))
            .bind(filter.younger_than.map(micros))
            .bind((filter.limit > 0).then_some(i64::from(filter.limit)));
        let rows = call.rows(statement).await?;
        let lines = call.value(rows.iter().map(audit_line).collect())?;
        call.done();
        Ok(lines)
    }
}

fn editable(row: &PgRow) -> Result<Editable, sqlx::Error> {
    let size = |column: &str| {
        Ok::<_, sqlx::Error>(
            row.try_get::<Option<i32>, _>(column)?.and_then(|bytes| usize::try_from(bytes).ok()),
        )
    };
    let headers: Option<&str> = row.try_get("headers")?;
    let edited: Vec<String> = row.try_get("edited")?;
    // A word of a later version is not overwritten in silence.
    word(row, "state", HoldState::parse)?;
    Ok(Editable {
        topic: row.try_get("topic")?,
        key: row.try_get("key")?,
        partition: row.try_get("partition")?,
        headers: headers.map_or(Ok(Vec::new()), header_list)?,
        payload_bytes: size("payload_bytes")?,
        other_bytes: size("other_bytes")?.unwrap_or(0),
        edited: BTreeSet::from_iter(edited),
        max_message_bytes: size("max_message_bytes")?.unwrap_or(usize::MAX),
    })
}

fn audit_line(row: &PgRow) -> Result<AuditLine, sqlx::Error> {
    Ok(AuditLine {
        at: row.try_get("at")?,
        kind: row.try_get("kind")?,
        id: row.try_get("id")?,
        seq: Seq(row.try_get("seq")?),
        topic: row.try_get("topic")?,
        reason_held: row.try_get("reason_held")?,
        correlation_id: row.try_get("correlation_id")?,
        who: row.try_get("who")?,
        why: row.try_get("why")?,
        details: row.try_get("details")?,
    })
}
