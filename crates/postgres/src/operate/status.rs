//! The outbox at a glance.

use std::time::Duration;

use outboxd_core::{CatchUp, Cursor, Seq, Snapshot};
use outboxd_engine::{Backlog, LeaderStatus, OutboxError, OutboxStatus};
use sqlx::Row;
use sqlx::postgres::PgRow;

use super::PostgresOperator;
use crate::backlog::{held_by_reason, open_replays};
use crate::lead::LEAD_LOCK;
use crate::schema::render;

/// Messages are counted exactly up to so many.
const EXACT_MAX: i64 = 10_000;

impl PostgresOperator {
    pub(super) async fn list_topics(&self) -> Result<Vec<String>, OutboxError> {
        let mut call = self.session.call("list topics").await?;
        let sql = render(include_str!("../sql/operate_topics.sql"), &self.config.schema);
        let rows = call.rows(sqlx::query(sql).persistent(false)).await?;
        let topics = call.value(rows.iter().map(|row| row.try_get("topic")).collect())?;
        call.done();
        Ok(topics)
    }

    pub(super) async fn read_limit(&self) -> Result<usize, OutboxError> {
        let mut call = self.session.call("read the size limit").await?;
        let sql = render(include_str!("../sql/operate_limit.sql"), &self.config.schema);
        let row = call.row(sqlx::query(sql).persistent(false)).await?;
        let bytes: i32 = call.value(row.try_get("max_message_bytes"))?;
        call.done();
        Ok(usize::try_from(bytes).unwrap_or(0))
    }

    pub(super) async fn read_status(&self) -> Result<OutboxStatus, OutboxError> {
        let mut call = self.session.call("read the status").await?;
        let sql = render(include_str!("../sql/operate_status.sql"), &self.config.schema);
        let row = call.row(sqlx::query(sql).persistent(false).bind(i64::from(LEAD_LOCK))).await?;
        let status = call.value(status(&row))?;
        let sql = render(include_str!("../sql/backlog.sql"), &self.config.schema);
        let row = call.row(sqlx::query(sql).persistent(false).bind(EXACT_MAX)).await?;
        let messages: i64 = call.value(row.try_get("messages"))?;
        let oldest_age_us: Option<i64> = call.value(row.try_get("oldest_age_us"))?;
        let scheduled: i64 = call.value(row.try_get("scheduled"))?;
        call.done();
        let sql = render(include_str!("../sql/backlog_held.sql"), &self.config.schema);
        Ok(status.with_backlog(Backlog {
            messages: u64::try_from(messages).unwrap_or(0),
            oldest_age: Duration::from_micros(u64::try_from(oldest_age_us.unwrap_or(0)).unwrap_or(0)),
            scheduled: u64::try_from(scheduled).unwrap_or(0),
            held: held_by_reason(&self.session, &sql).await?,
            replays: open_replays(
                &self.session,
                &render(include_str!("../sql/backlog_replays.sql"), &self.config.schema),
            )
            .await?,
        }))
    }
}

fn status(row: &PgRow) -> Result<OutboxStatus, sqlx::Error> {
    let pos: Option<i64> = row.try_get("pos")?;
    let until: Option<&str> = row.try_get("until")?;
    let cursor = Cursor {
        high: Seq(row.try_get("high")?),
        seen: Snapshot::new(row.try_get("seen")?),
        catch_up: pos.zip(until).map(|(pos, until)| CatchUp { pos: Seq(pos), until: Snapshot::new(until) }),
    };
    Ok(OutboxStatus {
        database: format!("postgres {}", row.try_get::<&str, _>("server_version")?),
        schema_version: row.try_get("schema_version")?,
        leader: LeaderStatus {
            relay: row.try_get("relay")?,
            epoch: row.try_get("epoch")?,
            led_at: row.try_get("led_at")?,
            alive: row.try_get("alive")?,
        },
        cursor: cursor.to_string(),
        settled_at: row.try_get("settled_at")?,
        kafka_cluster: row.try_get("kafka_cluster")?,
        backlog_messages: 0,
        oldest_age_seconds: 0.0,
        scheduled_messages: 0,
        held: Vec::new(),
        replays: Vec::new(),
    })
}
