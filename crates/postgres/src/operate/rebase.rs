//! `rebase`: the settled cursor, said again in the words of the place where the outbox is now.
//!
//! One transaction. It takes the lock of the lead, so no relay leads; it locks the message table against writers, so every intent is
//! committed or not there. Then each message at or below the cursor is judged by the old cursor, by its receipt and by what operators
//! decided. Those that were not dealt with get the number of this transaction, which the new cursor's snapshot has not seen: the next
//! relay reads them as late messages, in their order, before everything else. Those that were dealt with and have a number that this
//! cluster has yet to give out get one that every snapshot has seen. Messages above the cursor are read by their seq as ever.

use std::time::Duration;

use outboxd_core::{CatchUp, Cursor, Seq, Snapshot};
use outboxd_engine::{AuditedAction, OutboxError, Rebase, RebaseFigures, RebasePlan};
use sqlx::postgres::PgRow;
use sqlx::{Row, SqlSafeStr};
use time::OffsetDateTime;
use uuid::Uuid;

use super::PostgresOperator;
use crate::lead::{LEAD_LOCK, NO_CURSOR};
use crate::schema::render;
use crate::session::{Call, CallError, Purpose, Session};
use crate::sweep::{Known, Window};

/// Longest that a rebase may take: it may have to rewrite the table.
const WITHIN: Duration = Duration::from_secs(6 * 3_600);
/// How often, and how long apart, the lead is asked for: a relay that is refused at its start has it for a moment, again and again.
const LEAD_ATTEMPTS: u32 = 50;
const LEAD_PAUSE: Duration = Duration::from_millis(100);
/// Messages that are judged at a time.
const ROWS: u32 = 20_000;

impl Rebase for PostgresOperator {
    async fn rebase_plan(&self) -> Result<RebasePlan, OutboxError> {
        let session = self.patient_session().await?;
        let mut call = session.call("plan the rebase").await?;
        call.script("begin isolation level repeatable read read only".into_sql_str()).await?;
        let facts = self.facts(&mut call).await?;
        let mut plan = facts.plan();
        let undelivered = self.judge(&mut call, &facts, None).await?;
        let marked = call.row(self.asked(include_str!("../sql/rebase_marked.sql"))).await?;
        plan.figures.marked = count(call.value(marked.try_get("marked"))?);
        undelivered.tell(&mut plan.figures);
        call.script("rollback".into_sql_str()).await?;
        call.done();
        session.close().await;
        Ok(plan)
    }

    async fn rebase(&self, action: &AuditedAction) -> Result<RebasePlan, OutboxError> {
        let session = self.patient_session().await?;
        let mut call = session.call("rebase").await?;
        call.script("begin".into_sql_str()).await?;
        self.take_lead(&mut call).await?;
        self.lock_out_writers(&mut call).await?;
        let facts = self.facts(&mut call).await?;
        let mut plan = facts.plan();
        let here = call.row(self.asked(include_str!("../sql/rebase_here.sql"))).await?;
        let (xid, bound, snapshot): (String, String, String) = (
            call.value(here.try_get("xid"))?,
            call.value(here.try_get("bound"))?,
            call.value(here.try_get("snapshot"))?,
        );
        let undelivered = self.judge(&mut call, &facts, Some(&xid)).await?;
        undelivered.tell(&mut plan.figures);
        let mark = self.asked(include_str!("../sql/rebase_mark.sql")).bind(&snapshot).bind(&xid);
        plan.figures.marked = call.execute(mark).await?;
        if let Some(to) = plan.sequence_to {
            call.row(self.asked(include_str!("../sql/rebase_sequence.sql")).bind(to)).await?;
        }
        plan.done = true;
        let details = serde_json::to_string(&plan)
            .map_err(|error| call.failed(CallError::Client(error.to_string())))?;
        let moved = self
            .asked(include_str!("../sql/rebase_cursor.sql"))
            .bind(&snapshot)
            .bind(&bound)
            .bind(Uuid::from_u128(rand::random()))
            .bind(&action.who)
            .bind(&action.why)
            .bind(details);
        let moved = call.row(moved).await?;
        plan.cursor_after = Some(format!(
            "{}@{}",
            call.value(moved.try_get::<i64, _>("high"))?,
            call.value(moved.try_get::<&str, _>("seen"))?
        ));
        plan.operation = Some(call.value(moved.try_get("operation"))?);
        call.script("commit".into_sql_str()).await?;
        call.done();
        session.close().await;
        Ok(plan)
    }
}

/// Messages at or below the cursor that were not dealt with.
#[derive(Debug, Default)]
struct Undelivered {
    late: u64,
    unaccounted: u64,
}

impl Undelivered {
    fn tell(&self, figures: &mut RebaseFigures) {
        figures.late = self.late;
        figures.unaccounted = self.unaccounted;
        figures.dealt_with = figures.dealt_with.saturating_sub(self.late + self.unaccounted);
    }
}

impl PostgresOperator {
    /// A statement of this outbox's schema that is asked once.
    fn asked(&self, sql: &'static str) -> crate::session::Statement<'static> {
        sqlx::query(render(sql, &self.config.schema)).persistent(false)
    }

    /// A session whose statements may take long. What keeps a command from its work is found out first, on one whose may not.
    async fn patient_session(&self) -> Result<Session, OutboxError> {
        let mut call = self.session.call("rebase").await?;
        let rows = call.rows(self.asked(include_str!("../sql/rebase_may.sql"))).await?;
        let Some(row) = rows.first() else {
            call.done();
            return Err(OutboxError::Refused {
                finding: format!("there is no outbox in schema {} of this database", self.config.schema),
                remedy: "name the database in database.url and the schema in database.schema".into(),
            });
        };
        let (role, owner): (String, String) =
            (call.value(row.try_get("role"))?, call.value(row.try_get("owner"))?);
        let may: bool = call.value(row.try_get("may"))?;
        call.done();
        if !may {
            return Err(OutboxError::Refused {
                finding: format!("{role} may not rebase this outbox: it changes rows of messages"),
                remedy: format!("run it as {owner}, who owns it (--database-url)"),
            });
        }
        let mut config = self.config.clone();
        config.deadline = WITHIN;
        Ok(Session::new(&config, Purpose::Operate))
    }

    /// Takes the lock of the lead until the transaction ends.
    async fn take_lead(&self, call: &mut Call<'_>) -> Result<(), OutboxError> {
        for _ in 0..LEAD_ATTEMPTS {
            let row = call.row(self.asked(include_str!("../sql/lead_free.sql")).bind(LEAD_LOCK)).await?;
            if call.value(row.try_get::<bool, _>("free"))? {
                return Ok(());
            }
            tokio::time::sleep(LEAD_PAUSE).await;
        }
        let facts = self.facts(call).await?;
        Err(OutboxError::Refused {
            finding: format!(
                "a relay leads this outbox (the last to take the lead was {})",
                facts.relay.as_deref().unwrap_or("an unnamed one")
            ),
            remedy: "stop every relay of this outbox first".into(),
        })
    }

    async fn lock_out_writers(&self, call: &mut Call<'_>) -> Result<(), OutboxError> {
        call.script("set local lock_timeout = '30s'".into_sql_str()).await?;
        let lock = render(include_str!("../sql/rebase_lock.sql"), &self.config.schema);
        match call.script(lock).await {
            Err(OutboxError::Unavailable { source, .. })
                if source.downcast_ref::<CallError>().and_then(CallError::code) == Some("55P03") =>
            {
                Err(OutboxError::Refused {
                    finding: "a transaction that has written intents is still open".into(),
                    remedy: "let it end, or end it (pg_stat_activity, pg_prepared_xacts), and run this again"
                        .into(),
                })
            }
            other => other,
        }
    }

    async fn facts(&self, call: &mut Call<'_>) -> Result<Facts, OutboxError> {
        let rows = call.rows(self.asked(include_str!("../sql/rebase_facts.sql"))).await?;
        let Some(row) = rows.first() else {
            return Err(OutboxError::Refused { finding: NO_CURSOR.0.into(), remedy: NO_CURSOR.1.into() });
        };
        call.value(Facts::read(row))
    }

    /// Walks over everything at or below the cursor and says what was not dealt with, a window at a time. `publish`: gives those
    /// messages this transaction number.
    async fn judge(
        &self,
        call: &mut Call<'_>,
        facts: &Facts,
        publish: Option<&str>,
    ) -> Result<Undelivered, OutboxError> {
        let window_sql = render(include_str!("../sql/sweep_window.sql"), &self.config.schema);
        let cursor = &facts.cursor;
        let mut undelivered = Undelivered::default();
        let mut from = i64::MIN;
        loop {
            let Some(window) = Window::read(call, &window_sql, Some(from), ROWS, None).await? else {
                return Ok(undelivered);
            };
            let to = if window.compared.is_last { cursor.high.0 } else { window.compared.upto.0 };
            let suspects = self
                .asked(include_str!("../sql/rebase_suspects.sql"))
                .bind(from)
                .bind(to)
                .bind(window.unknown())
                .bind(cursor.seen.as_str())
                .bind(cursor.catch_up.as_ref().map(|catch_up| catch_up.pos.0))
                .bind(cursor.catch_up.as_ref().map(|catch_up| catch_up.until.as_str().to_owned()))
                .bind(facts.settled_at)
                .bind(window.receipts.since())
                .bind(window.receipts != Known::Nothing);
            let rows = call.rows(suspects).await?;
            let mut seqs: Vec<i64> = Vec::with_capacity(rows.len());
            for row in &rows {
                seqs.push(call.value(row.try_get("seq"))?);
                let is_late: bool = call.value(row.try_get("is_late"))?;
                *(if is_late { &mut undelivered.late } else { &mut undelivered.unaccounted }) += 1;
            }
            if let Some(xid) = publish.filter(|_| !seqs.is_empty()) {
                let update =
                    self.asked(include_str!("../sql/rebase_publish.sql")).bind(seqs).bind(xid.to_owned());
                call.execute(update).await?;
            }
            if window.compared.is_last {
                return Ok(undelivered);
            }
            from = to;
        }
    }
}

/// What the cursor speaks of, and where the outbox is now.
#[derive(Debug)]
struct Facts {
    cursor: Cursor,
    settled_at: Option<OffsetDateTime>,
    relay: Option<String>,
    kafka_cluster: Option<String>,
    settled_in: Option<i64>,
    this_cluster: i64,
    sequence_last: Option<i64>,
    seq_max: Option<i64>,
    above_cursor: i64,
    at_or_below: i64,
    held: i64,
    scheduled: i64,
}

impl Facts {
    fn read(row: &PgRow) -> Result<Self, sqlx::Error> {
        let pos: Option<i64> = row.try_get("pos")?;
        let until: Option<&str> = row.try_get("until")?;
        Ok(Self {
            cursor: Cursor {
                high: Seq(row.try_get("high")?),
                seen: Snapshot::new(row.try_get("seen")?),
                catch_up: pos
                    .zip(until)
                    .map(|(pos, until)| CatchUp { pos: Seq(pos), until: Snapshot::new(until) }),
            },
            settled_at: row.try_get("settled_at")?,
            relay: row.try_get("relay")?,
            kafka_cluster: row.try_get("kafka_cluster")?,
            settled_in: row.try_get("settled_in")?,
            this_cluster: row.try_get("this_cluster")?,
            sequence_last: row.try_get("sequence_last")?,
            seq_max: row.try_get("seq_max")?,
            above_cursor: row.try_get("above_cursor")?,
            at_or_below: row.try_get("at_or_below")?,
            held: row.try_get("held")?,
            scheduled: row.try_get("scheduled")?,
        })
    }

    fn plan(&self) -> RebasePlan {
        let needed = self.cursor.high.0.max(self.seq_max.unwrap_or(0));
        let last = self.sequence_last.unwrap_or(0);
        let is_low = last < needed;
        RebasePlan {
            done: false,
            operation: None,
            cursor_before: self.cursor.to_string(),
            cursor_after: None,
            settled_in: self.settled_in.map(|cluster| cluster.to_string()),
            this_cluster: Some(self.this_cluster.to_string()),
            kafka_cluster: self.kafka_cluster.clone(),
            sequence_at: is_low.then_some(last),
            sequence_to: is_low.then_some(needed),
            figures: RebaseFigures {
                above_cursor: count(self.above_cursor),
                dealt_with: count(self.at_or_below).saturating_sub(count(self.held) + count(self.scheduled)),
                held: count(self.held),
                scheduled: count(self.scheduled),
                ..RebaseFigures::default()
            },
        }
    }
}

fn count(rows: i64) -> u64 {
    u64::try_from(rows).unwrap_or(0)
}
