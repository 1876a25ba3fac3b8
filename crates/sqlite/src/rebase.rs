//! `rebase` of a file: the Kafka cluster is forgotten, whoever led before is fenced, the sequence is put right.
//!
//! The cursor of a single writer is a number and means the same in every copy of the file, so nothing is said again. What lies at or below
//! it without a receipt is the sweep's to find.

use outboxd_engine::{AuditedAction, OutboxError, Rebase, RebaseFigures, RebasePlan};
use sqlx::{Connection, Row, SqliteConnection};
use tokio::time::timeout;
use uuid::Uuid;

use crate::lead::refused;
use crate::migrate::version_of;
use crate::operator::SqliteOperator;
use crate::session::Failure;

impl Rebase for SqliteOperator {
    async fn rebase_plan(&self) -> Result<RebasePlan, OutboxError> {
        const DOING: &str = "plan the rebase";
        let mut lent = self.session.lend(&self.config, DOING, None).await?;
        let outcome = timeout(lent.deadline(), planned(lent.connection())).await;
        lent.finish(DOING, outcome)
    }

    async fn rebase(&self, action: &AuditedAction) -> Result<RebasePlan, OutboxError> {
        const DOING: &str = "rebase";
        let mut lent = self.session.lend(&self.config, DOING, None).await?;
        let outcome = timeout(lent.deadline(), rebased(lent.connection(), action)).await;
        lent.finish(DOING, outcome)
    }
}

async fn planned(connection: &mut SqliteConnection) -> Result<RebasePlan, Failure> {
    let mut transaction = connection.begin().await?;
    let plan = plan(&mut transaction).await?;
    transaction.rollback().await?;
    Ok(plan)
}

async fn rebased(connection: &mut SqliteConnection, action: &AuditedAction) -> Result<RebasePlan, Failure> {
    // Dropped without a commit, on every error below, it rolls back.
    let mut transaction = connection.begin_with("begin immediate").await?;
    let mut plan = plan(&mut transaction).await?;
    let alive: Option<bool> =
        sqlx::query_scalar(include_str!("sql/leader.sql")).fetch_one(&mut *transaction).await?;
    if alive == Some(true) {
        return Err(refused(
            "a relay leads this outbox, or led it moments before the file was copied".to_owned(),
            "stop every relay of this outbox, wait for relay.lead_session_ms and run this again",
        ));
    }
    sqlx::query(include_str!("sql/rebase_cursor.sql"))
        .bind(Uuid::new_v4().to_string())
        .execute(&mut *transaction)
        .await?;
    sqlx::query(include_str!("sql/rebase_sweep.sql")).execute(&mut *transaction).await?;
    sqlx::query(include_str!("sql/rebase_replays.sql")).bind(&action.who).execute(&mut *transaction).await?;
    if let Some(to) = plan.sequence_to {
        sqlx::query(include_str!("sql/rebase_sequence_forget.sql")).execute(&mut *transaction).await?;
        sqlx::query(include_str!("sql/rebase_sequence.sql")).bind(to).execute(&mut *transaction).await?;
    }
    plan.done = true;
    plan.cursor_after = Some(plan.cursor_before.clone());
    let details =
        serde_json::to_string(&plan).map_err(|error| OutboxError::unavailable("write the audit", error))?;
    let operation = sqlx::query_scalar(include_str!("sql/rebase_audit.sql"))
        .bind(&action.who)
        .bind(&action.why)
        .bind(details)
        .fetch_one(&mut *transaction)
        .await?;
    plan.operation = Some(operation);
    transaction.commit().await?;
    Ok(plan)
}

async fn plan(connection: &mut SqliteConnection) -> Result<RebasePlan, Failure> {
    if version_of(connection).await?.is_none() {
        return Err(refused("the database has no outbox".to_owned(), "run `outboxd migrate`"));
    }
    let facts = sqlx::query(include_str!("sql/rebase_facts.sql")).fetch_one(&mut *connection).await?;
    let sequence = sqlx::query(include_str!("sql/sequence.sql")).fetch_one(connection).await?;
    let count = |column| Ok::<_, Failure>(u64::try_from(facts.try_get::<i64, _>(column)?).unwrap_or(0));
    let (high, drawn): (i64, i64) = (facts.try_get("high")?, sequence.try_get("drawn")?);
    let (held, scheduled) = (count("held")?, count("scheduled")?);
    Ok(RebasePlan {
        done: false,
        operation: None,
        cursor_before: high.to_string(),
        cursor_after: None,
        settled_in: None,
        this_cluster: None,
        kafka_cluster: facts.try_get("kafka_cluster")?,
        sequence_at: (drawn < high).then_some(drawn),
        sequence_to: (drawn < high).then_some(high),
        figures: RebaseFigures {
            above_cursor: count("above_cursor")?,
            dealt_with: count("at_or_below")?.saturating_sub(held + scheduled),
            held,
            scheduled,
            ..RebaseFigures::default()
        },
    })
}
