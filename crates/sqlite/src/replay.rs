//! Replays: as the leader works on them, and as operators ask for them.

use outboxd_core::receipts;
use outboxd_core::{Message, Seq, TopicPattern};
use outboxd_engine::{
    AuditedAction, HeldId, OperateReplays, OutboxError, ReplayChange, ReplayChunk, ReplayError, ReplayFilter,
    ReplayFound, ReplayInfo, ReplayProgress, ReplayQuery, ReplayRequest, ReplaySample, ReplaySpan,
    ReplayState, ReplayStop, ReplayTask, ReplayTurn, Term,
};
use sqlx::sqlite::SqliteRow;
use sqlx::{Connection, Row, SqliteConnection};
use time::OffsetDateTime;
use tokio::time::timeout;

use crate::operator::{SqliteOperator, UnknownWord, limit, required, undecodable};
use crate::outbox::SqliteOutbox;
use crate::row::{id, message, text, timestamp};
use crate::session::Failure;

impl SqliteOutbox {
    pub(crate) async fn read_replay(&self, query: &ReplayQuery) -> Result<Option<ReplayChunk>, OutboxError> {
        const DOING: &str = "read the messages of a replay";
        let file = self.term_state().file;
        let mut lent = self.rest_session.lend(&self.config, DOING, file.as_ref()).await?;
        let outcome = timeout(lent.deadline(), chunk(lent.connection(), query)).await;
        lent.finish(DOING, outcome)
    }

    pub(crate) async fn write_replay(
        &self,
        progress: &ReplayProgress,
    ) -> Result<Option<ReplayState>, OutboxError> {
        const DOING: &str = "write down how far a replay is";
        let file = self.term_state().file;
        let mut lent = self.rest_session.lend(&self.config, DOING, file.as_ref()).await?;
        let outcome = timeout(lent.deadline(), write(lent.connection(), progress)).await;
        lent.finish(DOING, outcome)
    }
}

/// The stored state.
pub(crate) fn state_of(row: &SqliteRow) -> Result<ReplayState, sqlx::Error> {
    let word: String = row.try_get("state")?;
    ReplayState::parse(&word).ok_or_else(|| undecodable("state", UnknownWord(word)))
}

async fn fence(connection: &mut SqliteConnection, term: Term) -> Result<(), Failure> {
    let is_present: bool = sqlx::query_scalar(include_str!("sql/replay_term.sql"))
        .bind(term.epoch)
        .bind(term.nonce.to_string())
        .fetch_one(connection)
        .await?;
    if is_present { Ok(()) } else { Err(OutboxError::Fenced.into()) }
}

async fn chunk(
    connection: &mut SqliteConnection,
    query: &ReplayQuery,
) -> Result<Option<ReplayChunk>, Failure> {
    // One transaction that locks nobody: what is meant belongs to the cursor.
    let mut transaction = connection.begin().await?;
    fence(&mut transaction, query.term).await?;
    let found = sqlx::query(include_str!("sql/replay_task.sql"))
        .bind(query.going_on.map(|(replay, _)| replay))
        .bind(query.term.epoch)
        .fetch_optional(&mut *transaction)
        .await?;
    let Some(row) = found else { return Ok(None) };
    let task = task(&row)?;
    let above = query.going_on.map_or(task.pos, |(_, from)| from.max(task.pos));
    let rows = usize::try_from(query.rows.max(1)).unwrap_or(usize::MAX);
    let named: Option<Vec<i64>> = row
        .try_get::<Option<String>, _>("seqs")?
        .map(|seqs| serde_json::from_str(&seqs))
        .transpose()
        .map_err(|error| undecodable("seqs", error))?;
    let (looked_to, named) = match named {
        Some(seqs) => {
            let next: Vec<i64> = seqs.into_iter().filter(|seq| *seq > above.0).take(rows).collect();
            let last =
                if next.len() < rows { task.last.0 } else { next.last().copied().unwrap_or(task.last.0) };
            (last, Some(json(&next)))
        }
        None => {
            let last: Option<i64> = sqlx::query_scalar(include_str!("sql/replay_look.sql"))
                .bind(above.0)
                .bind(task.last.0)
                .bind(query.rows.max(1))
                .fetch_optional(&mut *transaction)
                .await?;
            (last.unwrap_or(task.last.0), None)
        }
    };
    let rows = sqlx::query(include_str!("sql/replay_chunk.sql"))
        .bind(task.replay)
        .bind(above.0)
        .bind(looked_to)
        .bind(query.limit.messages.max(1))
        .bind(i64::try_from(query.limit.bytes).unwrap_or(i64::MAX))
        .bind(named)
        .fetch_all(&mut *transaction)
        .await?;
    transaction.rollback().await?;
    let is_cut = match rows.first() {
        Some(first) => usize::try_from(first.try_get::<i64, _>("found")?).unwrap_or(usize::MAX) > rows.len(),
        None => false,
    };
    let messages: Vec<Message> = rows.iter().map(message).collect::<Result<_, Failure>>()?;
    let reached = match messages.last() {
        Some(last) if is_cut => last.seq,
        Some(_) | None => Seq(looked_to),
    };
    Ok(Some(ReplayChunk { task, messages, reached }))
}

fn task(row: &SqliteRow) -> Result<ReplayTask, sqlx::Error> {
    Ok(ReplayTask {
        replay: row.try_get("replay")?,
        who: row.try_get("who")?,
        to_topic: row.try_get("to_topic")?,
        rate: row.try_get("rate")?,
        total: count(row, "total")?,
        pos: Seq(row.try_get("pos")?),
        last: Seq(row.try_get("seq_last")?),
        in_vain: row.try_get("in_vain")?,
    })
}

async fn write(
    connection: &mut SqliteConnection,
    progress: &ReplayProgress,
) -> Result<Option<ReplayState>, Failure> {
    let (state, stop) = match &progress.turn {
        ReplayTurn::GoesOn => (ReplayState::Running, None),
        ReplayTurn::Done => (ReplayState::Done, None),
        ReplayTurn::Stopped(stop) => (ReplayState::Stopped, Some(stop)),
    };
    // Dropped without a commit, on every error below, it rolls back.
    let mut transaction = connection.begin_with("begin immediate").await?;
    fence(&mut transaction, progress.term).await?;
    let moved = sqlx::query(include_str!("sql/replay_move.sql"))
        .bind(progress.replay)
        .bind(progress.before.0)
        .bind(progress.after.0)
        .bind(i64::try_from(progress.receipts.len()).unwrap_or(i64::MAX))
        .bind(state.as_str())
        .bind(stop.map(|ReplayStop { error, .. }| error.as_str()))
        .bind(stop.map(|ReplayStop { seq, .. }| seq.0))
        .bind(stop.map(|ReplayStop { id, .. }| id.to_string()))
        .bind(progress.term.epoch)
        .fetch_optional(&mut *transaction)
        .await?;
    let Some(moved) = moved else { return Ok(None) };
    let state = state_of(&moved)?;
    for mut run in receipts::runs(progress.receipts.clone()) {
        let packed = receipts::encode(&mut run);
        let (Some(first), Some(last)) = (run.first(), run.last()) else { continue };
        sqlx::query(include_str!("sql/replay_receipts.sql"))
            .bind(first.seq.0)
            .bind(last.seq.0)
            .bind(i64::try_from(run.len()).unwrap_or(i64::MAX))
            .bind(packed)
            .bind(progress.replay)
            .execute(&mut *transaction)
            .await?;
    }
    transaction.commit().await?;
    Ok(Some(state))
}

impl OperateReplays for SqliteOperator {
    async fn replay_find(&self, filter: &ReplayFilter, span: ReplaySpan) -> Result<ReplayFound, OutboxError> {
        const DOING: &str = "look for dispatched messages";
        let mut lent = self.session.lend(&self.config, DOING, None).await?;
        let outcome = timeout(lent.deadline(), find(lent.connection(), filter, span)).await;
        lent.finish(DOING, outcome)
    }

    async fn replay_sample(&self, seqs: &[Seq]) -> Result<Vec<ReplaySample>, OutboxError> {
        const DOING: &str = "show dispatched messages";
        let mut lent = self.session.lend(&self.config, DOING, None).await?;
        let showing = async {
            let rows = sqlx::query(include_str!("sql/replay_sample.sql"))
                .bind(seqs_as_json(seqs))
                .fetch_all(lent.connection())
                .await?;
            Ok(rows.iter().map(sample).collect::<Result<Vec<_>, sqlx::Error>>()?)
        };
        let outcome = timeout(self.config.deadline, showing).await;
        lent.finish(DOING, outcome)
    }

    async fn replay_start(
        &self,
        request: &ReplayRequest,
        action: &AuditedAction,
    ) -> Result<i64, OutboxError> {
        const DOING: &str = "ask for a replay";
        let mut lent = self.session.lend(&self.config, DOING, None).await?;
        let outcome = timeout(self.config.deadline, start(lent.connection(), request, action)).await;
        lent.finish(DOING, outcome)
    }

    async fn replay_list(&self, replay: Option<i64>, messages: u32) -> Result<Vec<ReplayInfo>, OutboxError> {
        const DOING: &str = "list replays";
        let mut lent = self.session.lend(&self.config, DOING, None).await?;
        let listing = async {
            let rows = sqlx::query(include_str!("sql/replay_list.sql"))
                .bind(replay)
                .bind(limit(messages))
                .fetch_all(lent.connection())
                .await?;
            Ok(rows.iter().map(info).collect::<Result<Vec<_>, sqlx::Error>>()?)
        };
        let outcome = timeout(self.config.deadline, listing).await;
        lent.finish(DOING, outcome)
    }

    async fn replay_change(
        &self,
        replay: i64,
        change: ReplayChange,
        action: &AuditedAction,
    ) -> Result<(), ReplayError> {
        const DOING: &str = "change a replay";
        let mut lent = self.session.lend(&self.config, DOING, None).await?;
        let changing = alter(lent.connection(), replay, change, action);
        let outcome = timeout(self.config.deadline, changing).await;
        match lent.finish(DOING, outcome)? {
            None => Err(ReplayError::NoSuch(replay)),
            Some(Err(state)) => Err(ReplayError::Impossible { replay, state, change }),
            Some(Ok(())) => Ok(()),
        }
    }
}

async fn find(
    connection: &mut SqliteConnection,
    filter: &ReplayFilter,
    span: ReplaySpan,
) -> Result<ReplayFound, Failure> {
    let mut transaction = connection.begin().await?;
    let high: i64 =
        sqlx::query_scalar(include_str!("sql/replay_high.sql")).fetch_one(&mut *transaction).await?;
    let up_to = span.up_to.map_or(high, |seq| seq.0.min(high));
    let looked: Vec<i64> = sqlx::query_scalar(include_str!("sql/sweep_messages.sql"))
        .bind(span.above.0)
        .bind(up_to)
        .bind(span.rows.max(1))
        .fetch_all(&mut *transaction)
        .await?;
    let is_full = looked.len() >= usize::try_from(span.rows.max(1)).unwrap_or(usize::MAX);
    let reached = looked.last().copied().filter(|_| is_full).unwrap_or(up_to);
    let ids: Vec<String> = filter.ids.iter().map(ToString::to_string).collect();
    let seqs: Vec<i64> = sqlx::query_scalar(include_str!("sql/replay_find.sql"))
        .bind((!ids.is_empty()).then(|| json(&ids)))
        .bind(filter.correlation_id.as_deref())
        .bind(filter.topic.as_ref().map(TopicPattern::as_str))
        .bind(filter.key.as_deref())
        .bind(filter.from.map(stored))
        .bind(filter.before.map(stored))
        .bind(span.above.0)
        .bind(reached)
        .fetch_all(&mut *transaction)
        .await?;
    transaction.rollback().await?;
    Ok(ReplayFound {
        seqs: seqs.into_iter().map(Seq).collect(),
        looked_at: looked.len() as u64,
        reached: Seq(reached),
        up_to: Seq(up_to),
    })
}

async fn start(
    connection: &mut SqliteConnection,
    request: &ReplayRequest,
    action: &AuditedAction,
) -> Result<i64, Failure> {
    let ReplayRequest { filter, seqs, first, last, total, to_topic, rate } = request;
    let mut transaction = connection.begin_with("begin immediate").await?;
    let replay: i64 = sqlx::query_scalar(include_str!("sql/replay_start.sql"))
        .bind(&action.who)
        .bind(&action.why)
        .bind(seqs.as_deref().map(seqs_as_json))
        .bind(filter.correlation_id.as_deref())
        .bind(filter.topic.as_ref().map(TopicPattern::as_str))
        .bind(filter.key.as_deref())
        .bind(filter.from.map(stored))
        .bind(filter.before.map(stored))
        .bind(first.0)
        .bind(last.0)
        .bind(to_topic.as_deref())
        .bind(*rate)
        .bind(i64::try_from(*total).unwrap_or(i64::MAX))
        .fetch_one(&mut *transaction)
        .await?;
    let mut details = request.details();
    details["replay"] = replay.into();
    audit(&mut transaction, "replay", action, &details).await?;
    transaction.commit().await?;
    Ok(replay)
}

/// `None`: there is none; the state that it is in, if it cannot be changed.
async fn alter(
    connection: &mut SqliteConnection,
    replay: i64,
    change: ReplayChange,
    action: &AuditedAction,
) -> Result<Option<Result<(), ReplayState>>, Failure> {
    let skips = change == ReplayChange::Skip;
    let mut transaction = connection.begin_with("begin immediate").await?;
    let found = sqlx::query(include_str!("sql/replay_list.sql"))
        .bind(replay)
        .bind(1)
        .fetch_optional(&mut *transaction)
        .await?;
    let Some(found) = found.as_ref().map(info).transpose()? else { return Ok(None) };
    if !change.possible_in().contains(&found.state) || (skips && found.stopped_by.is_none()) {
        return Ok(Some(Err(found.state)));
    }
    sqlx::query(include_str!("sql/replay_change.sql"))
        .bind(replay)
        .bind(change.leads_to().as_str())
        .bind(skips)
        .bind(&action.who)
        .execute(&mut *transaction)
        .await?;
    let mut details = serde_json::json!({ "replay": replay, "was": found.state });
    if let Some(error) = found.error {
        details["error"] = error.into();
    }
    if let Some(skipped) = found.stopped_by.filter(|_| skips) {
        details["skipped"] = skipped.to_string().into();
    }
    audit(&mut transaction, change.audited_as(), action, &details).await?;
    transaction.commit().await?;
    Ok(Some(Ok(())))
}

async fn audit(
    connection: &mut SqliteConnection,
    kind: &str,
    action: &AuditedAction,
    details: &serde_json::Value,
) -> Result<(), sqlx::Error> {
    sqlx::query(include_str!("sql/operation_audit.sql"))
        .bind(kind)
        .bind(&action.who)
        .bind(&action.why)
        .bind(details.to_string())
        .execute(connection)
        .await
        .map(drop)
}

fn sample(row: &SqliteRow) -> Result<ReplaySample, sqlx::Error> {
    Ok(ReplaySample {
        seq: Seq(row.try_get("seq")?),
        id: id(row.try_get("id")?).unwrap_or_default(),
        topic: row.try_get("topic")?,
        correlation_id: text(row, "correlation_id")?.unwrap_or_default(),
        payload_bytes: row
            .try_get::<Option<i64>, _>("payload_bytes")?
            .and_then(|bytes| u64::try_from(bytes).ok()),
        created_at: required(row, "created_at")?,
    })
}

fn info(row: &SqliteRow) -> Result<ReplayInfo, sqlx::Error> {
    let stopped_id: Option<String> = row.try_get("stopped_id")?;
    let stopped_id =
        stopped_id.map(|id| id.parse()).transpose().map_err(|error| undecodable("stopped_id", error))?;
    let stopped_seq: Option<i64> = row.try_get("stopped_seq")?;
    Ok(ReplayInfo {
        replay: row.try_get("replay")?,
        state: state_of(row)?,
        who: row.try_get("who")?,
        why: row.try_get("why")?,
        requested_at: required(row, "requested_at")?,
        named: row.try_get::<Option<i64>, _>("named")?.and_then(|named| u64::try_from(named).ok()),
        correlation_id: row.try_get("correlation_id")?,
        topic: row.try_get("topic")?,
        from: timestamp(row, "created_from")?,
        before: timestamp(row, "created_before")?,
        first: Seq(row.try_get("seq_first")?),
        last: Seq(row.try_get("seq_last")?),
        to_topic: row.try_get("to_topic")?,
        rate: row.try_get("rate")?,
        total: count(row, "total")?,
        published: count(row, "published")?,
        skipped: count(row, "skipped")?,
        pos: Seq(row.try_get("pos")?),
        error: row.try_get("error")?,
        stopped_by: stopped_seq.zip(stopped_id).map(|(seq, id)| HeldId { id, seq: Some(Seq(seq)) }),
        changed_at: required(row, "changed_at")?,
        changed_by: row.try_get("changed_by")?,
    })
}

fn count(row: &SqliteRow, column: &str) -> Result<u64, sqlx::Error> {
    Ok(u64::try_from(row.try_get::<i64, _>(column)?).unwrap_or(0))
}

fn seqs_as_json(seqs: &[Seq]) -> String {
    json(seqs)
}

fn json<T: serde::Serialize>(values: &[T]) -> String {
    serde_json::to_string(values).unwrap_or_else(|_| "[]".to_owned())
}

/// A time as our tables store it: to the millisecond, in UTC. What lies between two milliseconds counts as the later one.
fn stored(at: OffsetDateTime) -> String {
    let at = at.to_offset(time::UtcOffset::UTC);
    let up =
        if at.nanosecond().is_multiple_of(1_000_000) { at } else { at + time::Duration::milliseconds(1) };
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z",
        up.year(),
        u8::from(up.month()),
        up.day(),
        up.hour(),
        up.minute(),
        up.second(),
        up.millisecond()
    )
}
