//! Replays, as operators ask for them.

use outboxd_core::{Seq, TopicPattern};
use outboxd_engine::{
    AuditedAction, HeldId, OperateReplays, OutboxError, ReplayChange, ReplayError, ReplayFilter, ReplayFound,
    ReplayInfo, ReplayRequest, ReplaySample, ReplaySpan, ReplayState,
};
use sqlx::Row;
use sqlx::postgres::PgRow;

use super::PostgresOperator;
use super::held::word;
use crate::schema::render;
use crate::session::Statement;

impl PostgresOperator {
    fn replay_statement(&self, sql: &'static str) -> Statement<'static> {
        sqlx::query(render(sql, &self.config.schema))
    }
}

impl OperateReplays for PostgresOperator {
    async fn replay_find(&self, filter: &ReplayFilter, span: ReplaySpan) -> Result<ReplayFound, OutboxError> {
        let mut call = self.session.call("look for dispatched messages").await?;
        let statement = self
            .replay_statement(include_str!("../sql/operate_replay_find.sql"))
            .bind((!filter.ids.is_empty()).then(|| filter.ids.clone()))
            .bind(filter.correlation_id.clone())
            .bind(filter.topic.as_ref().map(TopicPattern::like))
            .bind(filter.key.clone())
            .bind(filter.from)
            .bind(filter.before)
            .bind(span.above.0)
            .bind(span.up_to.map(|seq| seq.0))
            .bind(i64::from(span.rows.max(1)));
        let row = call.row(statement).await?;
        let seqs: Vec<i64> = call.value(row.try_get("seqs"))?;
        let looked_at: i64 = call.value(row.try_get("looked_at"))?;
        let found = ReplayFound {
            seqs: seqs.into_iter().map(Seq).collect(),
            looked_at: u64::try_from(looked_at).unwrap_or(0),
            reached: Seq(call.value(row.try_get("reached"))?),
            up_to: Seq(call.value(row.try_get("up_to"))?),
        };
        call.done();
        Ok(found)
    }

    async fn replay_sample(&self, seqs: &[Seq]) -> Result<Vec<ReplaySample>, OutboxError> {
        let mut call = self.session.call("show dispatched messages").await?;
        let statement = self
            .replay_statement(include_str!("../sql/operate_replay_sample.sql"))
            .bind(seqs.iter().map(|seq| seq.0).collect::<Vec<_>>());
        let rows = call.rows(statement).await?;
        let sample = call.value(rows.iter().map(sample).collect())?;
        call.done();
        Ok(sample)
    }

    async fn replay_start(
        &self,
        request: &ReplayRequest,
        action: &AuditedAction,
    ) -> Result<i64, OutboxError> {
        let ReplayRequest { filter, seqs, first, last, total, to_topic, rate } = request;
        let mut call = self.session.call("ask for a replay").await?;
        let statement = self
            .replay_statement(include_str!("../sql/operate_replay_start.sql"))
            .bind(action.who.clone())
            .bind(action.why.clone())
            .bind(seqs.as_ref().map(|seqs| seqs.iter().map(|seq| seq.0).collect::<Vec<_>>()))
            .bind(filter.correlation_id.clone())
            .bind(filter.topic.as_ref().map(|topic| topic.as_str().to_owned()))
            .bind(filter.key.clone())
            .bind(filter.from)
            .bind(filter.before)
            .bind(first.0)
            .bind(last.0)
            .bind(to_topic.clone())
            .bind(rate.map(|rate| i32::try_from(rate).unwrap_or(i32::MAX)))
            .bind(i64::try_from(*total).unwrap_or(i64::MAX))
            .bind(request.details().to_string());
        let row = call.row(statement).await?;
        let replay = call.value(row.try_get("replay"))?;
        call.done();
        Ok(replay)
    }

    async fn replay_list(&self, replay: Option<i64>, limit: u32) -> Result<Vec<ReplayInfo>, OutboxError> {
        let mut call = self.session.call("list replays").await?;
        let statement = self
            .replay_statement(include_str!("../sql/operate_replay_list.sql"))
            .bind(replay)
            .bind((limit > 0).then_some(i64::from(limit)));
        let rows = call.rows(statement).await?;
        let replays = call.value(rows.iter().map(info).collect())?;
        call.done();
        Ok(replays)
    }

    async fn replay_change(
        &self,
        replay: i64,
        change: ReplayChange,
        action: &AuditedAction,
    ) -> Result<(), ReplayError> {
        let mut call = self.session.call("change a replay").await?;
        let possible: Vec<&str> = change.possible_in().iter().map(|state| state.as_str()).collect();
        let statement = self
            .replay_statement(include_str!("../sql/operate_replay_change.sql"))
            .bind(replay)
            .bind(possible)
            .bind(change.leads_to().as_str())
            .bind(change == ReplayChange::Skip)
            .bind(action.who.clone())
            .bind(action.why.clone())
            .bind(change.audited_as());
        let rows = call.rows(statement).await?;
        let Some(row) = rows.first() else {
            call.done();
            return Err(ReplayError::NoSuch(replay));
        };
        let state = call.value(word(row, "state", ReplayState::parse))?;
        let is_changed: bool = call.value(row.try_get("is_changed"))?;
        call.done();
        if is_changed { Ok(()) } else { Err(ReplayError::Impossible { replay, state, change }) }
    }
}

fn sample(row: &PgRow) -> Result<ReplaySample, sqlx::Error> {
    Ok(ReplaySample {
        seq: Seq(row.try_get("seq")?),
        id: row.try_get("id")?,
        topic: row.try_get("topic")?,
        correlation_id: row.try_get("correlation_id")?,
        payload_bytes: row
            .try_get::<Option<i32>, _>("payload_bytes")?
            .and_then(|bytes| u64::try_from(bytes).ok()),
        created_at: row.try_get("created_at")?,
    })
}

fn info(row: &PgRow) -> Result<ReplayInfo, sqlx::Error> {
    let count =
        |column: &str| Ok::<_, sqlx::Error>(u64::try_from(row.try_get::<i64, _>(column)?).unwrap_or(0));
    let stopped: (Option<i64>, Option<uuid::Uuid>) =
        (row.try_get("stopped_seq")?, row.try_get("stopped_id")?);
    Ok(ReplayInfo {
        replay: row.try_get("replay")?,
        state: word(row, "state", ReplayState::parse)?,
        who: row.try_get("who")?,
        why: row.try_get("why")?,
        requested_at: row.try_get("requested_at")?,
        named: row.try_get::<Option<i32>, _>("named")?.and_then(|named| u64::try_from(named).ok()),
        correlation_id: row.try_get("correlation_id")?,
        topic: row.try_get("topic")?,
        from: row.try_get("created_from")?,
        before: row.try_get("created_before")?,
        first: Seq(row.try_get("seq_first")?),
        last: Seq(row.try_get("seq_last")?),
        to_topic: row.try_get("to_topic")?,
        rate: row.try_get::<Option<i32>, _>("rate")?.and_then(|rate| u32::try_from(rate).ok()),
        total: count("total")?,
        published: count("published")?,
        skipped: count("skipped")?,
        pos: Seq(row.try_get("pos")?),
        error: row.try_get("error")?,
        stopped_by: stopped.0.zip(stopped.1).map(|(seq, id)| HeldId { id, seq: Some(Seq(seq)) }),
        changed_at: row.try_get("changed_at")?,
        changed_by: row.try_get("changed_by")?,
    })
}
