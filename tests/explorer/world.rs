//! One outbox, its writers and its relay: runs a case step by step.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use outboxd_core::{Cursor, Page, PageFrame, Snapshot};
use outboxd_engine::{Outbox, PageLimit, PurgeLimit, Settlement, Term, Upkeep};
use outboxd_postgres::migrate::Migrator;
use outboxd_postgres::sql::Statements;
use outboxd_postgres::{PostgresConfig, PostgresOutbox, SchemaName};
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row, SqlSafeStr, SqlStr};

use super::check::{Ledger, Violation};
use super::program::{Act, Case};
use super::rule::{Rule, Stop, shown};

const WRITERS: usize = 5;
/// Pages after which an outbox that nobody writes to must have come to rest.
const PAGES_TO_REST_MAX: usize = 500;

/// Each world has a schema of its own.
static WORLDS: AtomicU64 = AtomicU64::new(0);

#[derive(Debug)]
pub(super) struct World {
    name: String,
    rule: Rule,
    outbox: PostgresOutbox,
    term: Term,
    writers: Vec<Writer>,
    /// Takes snapshots for the rules that are broken that way.
    side: PgConnection,
    insert: SqlStr,
    settled: Cursor,
    from: Cursor,
    in_flight: VecDeque<InFlight>,
    half_read: Option<HalfRead>,
    ledger: Ledger,
    step: usize,
    pages: u64,
}

#[derive(Debug)]
struct Writer {
    connection: PgConnection,
    state: State,
    /// Counts its transactions.
    transaction: usize,
    /// Messages since the savepoint, if there is one.
    since_savepoint: Option<Vec<i64>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Idle,
    Open,
    Prepared,
}

/// A published page that is not settled to its end.
#[derive(Debug)]
struct InFlight {
    from: Cursor,
    snapshot: Snapshot,
    late: usize,
    late_complete: bool,
    frame: PageFrame,
    dealt_with: usize,
}

/// A page whose second statement is still to come.
#[derive(Debug)]
enum HalfRead {
    Snapshot(Snapshot),
    Rows(Page),
}

impl World {
    pub(super) async fn create(url: &str, rule: Rule) -> Result<Self> {
        let name = format!("explored_{}", WORLDS.fetch_add(1, Ordering::Relaxed));
        let schema: SchemaName = name.parse()?;
        Migrator::new(url.parse()?, schema.clone()).apply().await?;
        let statements = rule.statements(Statements::new(&schema));
        let mut config = PostgresConfig::from_url(url, schema, "explorer")?;
        // The lead is not kept while a case is slow.
        config.lead_session = Duration::from_secs(600);
        let outbox = PostgresOutbox::with_statements(config, statements);
        let term = outbox.lead().await?.context("nobody else leads")?;
        let start = outbox.start(term).await?;
        let mut writers = Vec::new();
        for _ in 0..WRITERS {
            writers.push(Writer {
                connection: PgConnection::connect(url).await?,
                state: State::Idle,
                transaction: 0,
                since_savepoint: None,
            });
        }
        // One byte each: the key.
        let insert = format!(
            "insert into {name}.message (topic, key, payload) \
             select 't', 'k', '' from generate_series(1, $1) returning seq"
        );
        Ok(Self {
            name,
            rule,
            outbox,
            term,
            writers,
            side: PgConnection::connect(url).await?,
            insert: AssertSqlSafe(insert).into_sql_str(),
            settled: start.cursor.clone(),
            from: start.cursor,
            in_flight: VecDeque::new(),
            half_read: None,
            ledger: Ledger::default(),
            step: 0,
            pages: 0,
        })
    }

    /// As new: whatever a violation has left is gone.
    pub(super) async fn reset(&mut self) -> Result<()> {
        for writer in 0..WRITERS {
            self.write(writer, Act::Rollback).await?;
        }
        let sql = format!(
            "truncate {0}.message restart identity; \
             update {0}.cursor set high = 0, seen = pg_current_snapshot(), pos = null, until = null, \
               xid_bound = pg_current_xact_id()",
            self.name
        );
        script(&mut self.side, &sql).await?;
        let start = self.outbox.start(self.term).await?;
        self.settled = start.cursor.clone();
        self.from = start.cursor;
        self.in_flight.clear();
        self.half_read = None;
        Ok(())
    }

    pub(super) async fn close(self) {
        self.outbox.step_down().await;
    }

    /// Pages read by the last case.
    pub(super) fn pages_read(&self) -> u64 {
        self.pages
    }

    /// Runs the steps, then commits what is open, drains the outbox and judges. The next case goes on from there.
    pub(super) async fn run(&mut self, case: &Case) -> Result<Option<Violation>> {
        self.ledger = Ledger::default();
        self.step = 0;
        self.pages = 0;
        let limit = PageLimit { messages: case.messages, bytes: case.bytes };
        for step in &case.steps {
            self.step += 1;
            let found = match step.actor {
                0 => self.relay(step.act, limit).await?,
                writer => {
                    self.write(writer - 1, step.act).await.with_context(|| format!("{step:?}"))?;
                    None
                }
            };
            if found.is_some() {
                return Ok(found);
            }
        }
        for writer in 0..WRITERS {
            self.step += 1;
            self.write(writer, Act::Commit).await?;
        }
        if let Some(found) = self.drain(limit).await? {
            return Ok(Some(found));
        }
        Ok(self.ledger.judge())
    }

    async fn write(&mut self, nth: usize, act: Act) -> Result<()> {
        let writer = &mut self.writers[nth];
        let written_by = (nth, writer.transaction);
        let opens = matches!(act, Act::Xid | Act::Insert(_) | Act::Savepoint);
        if opens && writer.state == State::Idle {
            script(&mut writer.connection, "begin").await?;
            writer.state = State::Open;
        }
        match (act, writer.state) {
            (Act::Xid, State::Open) => script(&mut writer.connection, "select pg_current_xact_id()").await?,
            (Act::Insert(messages), State::Open) => {
                let rows = sqlx::query(self.insert.clone())
                    .bind(i32::from(messages))
                    .fetch_all(&mut writer.connection)
                    .await?;
                for row in rows {
                    let seq = row.get(0);
                    self.ledger.inserted(seq, self.step, written_by);
                    if let Some(since) = &mut writer.since_savepoint {
                        since.push(seq);
                    }
                }
            }
            (Act::Savepoint, State::Open) if writer.since_savepoint.is_none() => {
                script(&mut writer.connection, "savepoint s").await?;
                writer.since_savepoint = Some(Vec::new());
            }
            (Act::RollbackTo, State::Open) => {
                if let Some(since) = &mut writer.since_savepoint {
                    script(&mut writer.connection, "rollback to s").await?;
                    self.ledger.undone(&std::mem::take(since));
                }
            }
            (Act::Prepare, State::Open) => {
                script(&mut writer.connection, &format!("prepare transaction '{} {nth}'", self.name)).await?;
                writer.state = State::Prepared;
            }
            (Act::Commit | Act::Rollback, State::Open | State::Prepared) => {
                let word = if act == Act::Commit { "commit" } else { "rollback" };
                let sql = match writer.state {
                    State::Prepared => format!("{word} prepared '{} {nth}'", self.name),
                    State::Open | State::Idle => word.to_owned(),
                };
                script(&mut writer.connection, &sql).await?;
                if act == Act::Commit {
                    self.ledger.committed(written_by, self.step);
                }
                writer.state = State::Idle;
                writer.transaction += 1;
                writer.since_savepoint = None;
            }
            _ => {}
        }
        Ok(())
    }

    async fn relay(&mut self, act: Act, limit: PageLimit) -> Result<Option<Violation>> {
        match act {
            Act::Page => match self.rule {
                Rule::SnapshotBeforeRows => {
                    self.half_read = Some(HalfRead::Snapshot(self.snapshot().await?));
                    Ok(None)
                }
                Rule::SnapshotAfterRows => {
                    let read = self.outbox.read(&self.from, limit).await?;
                    self.half_read = Some(HalfRead::Rows(read.page));
                    Ok(None)
                }
                _ => {
                    let read = self.outbox.read(&self.from, limit).await?;
                    self.publish(read.page).await
                }
            },
            Act::PageEnd => match self.half_read.take() {
                Some(HalfRead::Snapshot(snapshot)) => {
                    let mut read = self.outbox.read(&self.from, limit).await?;
                    read.page.snapshot = snapshot;
                    self.publish(read.page).await
                }
                Some(HalfRead::Rows(mut page)) => {
                    page.snapshot = self.snapshot().await?;
                    self.publish(page).await
                }
                None => Ok(None),
            },
            Act::Settle(messages) => {
                self.settle(usize::from(messages)).await?;
                Ok(None)
            }
            Act::Restart => self.restart().await,
            Act::Purge => {
                let limit =
                    PurgeLimit { keep_messages: Duration::ZERO, keep_receipts: Duration::ZERO, rows: 1_000 };
                self.outbox.purge(limit).await?;
                Ok(None)
            }
            Act::Xid
            | Act::Insert(_)
            | Act::Savepoint
            | Act::RollbackTo
            | Act::Prepare
            | Act::Commit
            | Act::Rollback => {
                bail!("the relay does not {act:?}")
            }
        }
    }

    async fn snapshot(&mut self) -> Result<Snapshot> {
        let text: String =
            sqlx::query_scalar("select pg_current_snapshot()::text").fetch_one(&mut self.side).await?;
        Ok(Snapshot::new(&text))
    }

    async fn publish(&mut self, page: Page) -> Result<Option<Violation>> {
        self.pages += 1;
        let (from, snapshot) = (page.from.clone(), page.snapshot.clone());
        let (late, late_complete) = (page.late, page.late_complete);
        let (frame, messages) = page.into_parts();
        let mut order: Vec<i64> = messages.iter().map(|message| message.seq.0).collect();
        if self.rule == Rule::OrderByXid {
            self.order_by_xid(&mut order).await?;
        }
        for seq in order {
            if let Some(found) = self.ledger.published(seq) {
                return Ok(Some(found));
            }
        }
        let in_flight = InFlight { from, snapshot, late, late_complete, frame, dealt_with: 0 };
        self.from = self.cursor_after(&in_flight, in_flight.frame.len());
        if !in_flight.frame.is_empty() {
            self.in_flight.push_back(in_flight);
        }
        Ok(None)
    }

    async fn order_by_xid(&mut self, seqs: &mut [i64]) -> Result<()> {
        let sql = format!("select seq from {}.message m where seq = any($1) order by m.xid, seq", self.name);
        let ordered: Vec<i64> =
            sqlx::query_scalar(AssertSqlSafe(sql)).bind(seqs.to_vec()).fetch_all(&mut self.side).await?;
        seqs.copy_from_slice(&ordered);
        Ok(())
    }

    fn cursor_after(&self, page: &InFlight, dealt_with: usize) -> Cursor {
        let stop = Stop {
            from: &page.from,
            snapshot: &page.snapshot,
            last_seq: dealt_with.checked_sub(1).map(|last| page.frame.seq(last)),
            inside_late: page.late_complete && (1..page.late).contains(&dealt_with),
        };
        self.rule.cursor_after(page.frame.cursor_after(dealt_with), &stop)
    }

    async fn settle(&mut self, messages: usize) -> Result<()> {
        let mut left = messages;
        let mut after = self.settled.clone();
        while left > 0
            && let Some(mut page) = self.in_flight.pop_front()
        {
            let end = page.frame.len().min(page.dealt_with.saturating_add(left));
            left -= end - page.dealt_with;
            for index in page.dealt_with..end {
                self.ledger.settled(page.frame.seq(index).0);
            }
            page.dealt_with = end;
            after = self.cursor_after(&page, end);
            if end < page.frame.len() {
                self.in_flight.push_front(page);
            }
        }
        if after == self.settled {
            return Ok(());
        }
        let settlement = Settlement {
            term: self.term,
            before: self.settled.clone(),
            after: after.clone(),
            receipts: Vec::new(),
            receipts_out_of_order: Vec::new(),
            holds: Vec::new(),
            released: Vec::new(),
            trial: None,
            proves_term: true,
            scheduled: Vec::new(),
        };
        self.outbox.settle(settlement).await?;
        self.settled = after;
        Ok(())
    }

    async fn restart(&mut self) -> Result<Option<Violation>> {
        let start = self.outbox.start(self.term).await?;
        if start.cursor != self.settled {
            let text = format!(
                "{} ({}) instead of {}",
                start.cursor,
                shown(start.cursor.catch_up.as_ref()),
                self.settled
            );
            return Ok(Some(Violation::OtherCursor(text)));
        }
        self.from = start.cursor;
        self.in_flight.clear();
        self.half_read = None;
        self.ledger.restarted();
        Ok(None)
    }

    /// Reads and settles until two pages in a row are empty.
    async fn drain(&mut self, limit: PageLimit) -> Result<Option<Violation>> {
        self.half_read = None;
        let mut empty = 0;
        for _ in 0..PAGES_TO_REST_MAX {
            let before = self.in_flight.len();
            for act in [Act::Page, Act::PageEnd] {
                if let Some(found) = self.relay(act, limit).await? {
                    return Ok(Some(found));
                }
            }
            empty = if self.in_flight.len() == before { empty + 1 } else { 0 };
            if empty == 2 {
                self.settle(usize::MAX).await?;
                return Ok(None);
            }
        }
        Ok(Some(Violation::NoRest))
    }
}

async fn script(connection: &mut PgConnection, sql: &str) -> Result<()> {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(connection).await?;
    Ok(())
}
