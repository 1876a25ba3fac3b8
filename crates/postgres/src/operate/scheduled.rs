//! Scheduled messages: listing them and taking them back.

use outboxd_core::{KeyHash, Seq};
use outboxd_engine::operate::shown_key_hash;
use outboxd_engine::{AuditedAction, OperateError, OutboxError, ScheduledFilter, ScheduledMessage};
use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::PostgresOperator;
use crate::schema::render;

impl PostgresOperator {
    pub(super) async fn list_scheduled(
        &self,
        filter: &ScheduledFilter,
    ) -> Result<Vec<ScheduledMessage>, OutboxError> {
        let mut call = self.session.call("list scheduled messages").await?;
        let sql = render(include_str!("../sql/operate_scheduled_list.sql"), &self.config.schema);
        let statement = sqlx::query(sql)
            .persistent(false)
            .bind(filter.id)
            .bind(filter.topic.as_ref().map(|topic| topic.like()))
            .bind((filter.limit > 0).then_some(i64::from(filter.limit)));
        let rows = call.rows(statement).await?;
        let messages = call.value(rows.iter().map(scheduled_message).collect())?;
        call.done();
        Ok(messages)
    }

    pub(super) async fn cancel_scheduled(
        &self,
        id: Uuid,
        action: &AuditedAction,
    ) -> Result<(), OperateError> {
        let mut call = self.session.call("cancel scheduled message").await?;
        let sql = render(include_str!("../sql/operate_scheduled_cancel.sql"), &self.config.schema);
        let statement = sqlx::query(sql).persistent(false).bind(id).bind(&action.who).bind(&action.why);
        let row = call.row(statement).await?;
        let in_time: bool = call.value(row.try_get("in_time"))?;
        call.done();
        if in_time { Ok(()) } else { Err(OperateError::NotScheduled(id)) }
    }
}

fn scheduled_message(row: &PgRow) -> Result<ScheduledMessage, sqlx::Error> {
    let key_hash: Option<i64> = row.try_get("key_hash")?;
    Ok(ScheduledMessage {
        seq: Seq(row.try_get("seq")?),
        id: row.try_get("id")?,
        correlation_id: row.try_get("correlation_id")?,
        topic: row.try_get("topic")?,
        key_hash: shown_key_hash(key_hash.map(KeyHash::from_i64)),
        created_at: row.try_get("created_at")?,
        due_at: row.try_get("due_at")?,
        cancelled_by: row.try_get("cancelled_by")?,
    })
}
