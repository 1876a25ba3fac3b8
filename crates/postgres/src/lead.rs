//! Taking the lead, keeping it, and where dispatching starts.
//!
//! A session advisory lock says that the leader is alive: it goes when its session goes. Epoch and nonce in the cursor
//! row keep it safe: every settle names both. The bump commits synchronously, and cursor and held keys are read after it.

use outboxd_core::{CatchUp, Cursor, Seq, Snapshot};
use outboxd_engine::{OutboxError, Rewound, Start, Term, Trial};
use sqlx::postgres::PgRow;
use sqlx::{Row, SqlSafeStr};
use uuid::Uuid;

use crate::held::Walk;
use crate::migrate::{SCHEMA_VERSION, SCHEMA_VERSION_MIN};
use crate::outbox::{Memory, PostgresOutbox};
use crate::row_security::Hidden;
use crate::session::{Call, CallError, pooled_by_transaction};

/// First key of the advisory lock of the lead, "obld" in ASCII; the second is the oid of the message table.
pub const LEAD_LOCK: i32 = 0x6f62_6c64;

/// Telling the database that a term has ended must not hold up what follows.
const END_WITHIN: std::time::Duration = std::time::Duration::from_secs(1);

impl PostgresOutbox {
    pub(crate) async fn take_lead(&self) -> Result<Option<Term>, OutboxError> {
        let mut call = self.lead_session.call("take the lead").await?;
        // First: a cursor that this role does not see is not missing.
        let hidden = Hidden::tables(&mut call, self.sql.row_security.clone()).await?;
        if let Some((finding, remedy)) = Hidden::told(&hidden) {
            return Err(OutboxError::Refused { finding, remedy });
        }
        let row = call.row(sqlx::query(self.sql.lead_verify.clone())).await?;
        let verified = call.value(Verified::read(&row))?;
        verified.judge()?;
        let free = call.row(sqlx::query(self.sql.lead_free.clone()).bind(LEAD_LOCK)).await?;
        if !call.value(free.try_get::<bool, _>("free"))? {
            call.done();
            return Ok(None);
        }
        let backend: i32 = call.value(free.try_get("backend"))?;
        let incarnation = call.incarnation();
        self.refuse_transaction_pooling(&mut call, backend).await?;
        let lock = call.row(sqlx::query(self.sql.lead_lock.clone()).bind(LEAD_LOCK)).await?;
        if !call.value(lock.try_get::<bool, _>("locked"))? {
            // Another relay was quicker, and a standby has one session.
            self.read_session.close().await;
            call.done();
            return Ok(None);
        }
        *self.memory() = Memory { led: Some((incarnation, backend)), ..Memory::default() };
        let nonce = Uuid::from_u128(rand::random());
        let bumped =
            call.row(sqlx::query(self.sql.lead_bump.clone()).bind(nonce).bind(&self.config.relay)).await?;
        let epoch = call.value(bumped.try_get("epoch"))?;
        call.done();
        let term = Term { epoch, nonce, keep_every: self.config.lead_session / 3 };
        self.memory().term = Some(term);
        Ok(Some(term))
    }

    /// Says that the term ends in order, on the lead session if that is still there.
    pub(crate) async fn end_term(&self) {
        let Some(term) = self.memory().term.take() else { return };
        let ending = async {
            let mut call = self.lead_session.call_if_open("end the term").await?;
            call.rows(sqlx::query(self.sql.lead_end.clone()).bind(term.epoch).bind(term.nonce)).await?;
            call.done();
            Ok::<(), OutboxError>(())
        };
        let ended = tokio::time::timeout(END_WITHIN, ending).await;
        if !matches!(ended, Ok(Ok(()))) {
            tracing::debug!(target: "outboxd::lead", "the database could not be told that the term has ended");
        }
    }

    /// Behind a proxy that pools by transaction, a lock belongs to whoever gets that server connection next. While one of our
    /// sessions is inside a transaction, the other cannot be given its connection: so either both show the same backend, or the
    /// one that is to hold the lock moves to another.
    async fn refuse_transaction_pooling(&self, lead: &mut Call<'_>, backend: i32) -> Result<(), OutboxError> {
        let mut read = self.read_session.call("take the lead").await?;
        read.script("begin".into_sql_str()).await?;
        let other = backend_of(&mut read).await?;
        let now = backend_of(lead).await?;
        read.script("commit".into_sql_str()).await?;
        read.done();
        if other == backend || now != backend { Err(pooled_by_transaction()) } else { Ok(()) }
    }

    pub(crate) async fn start_term(&self, term: Term) -> Result<Start, OutboxError> {
        let mut call = self.lead_session.call_if_open("read the settled cursor").await?;
        let rows =
            call.rows(sqlx::query(self.sql.lead_start.clone()).bind(term.epoch).bind(term.nonce)).await?;
        let Some(first) = rows.first() else {
            call.done();
            return Err(OutboxError::Fenced);
        };
        let (cursor, bound, actions) = call.value(stored_cursor(first))?;
        let kafka_cluster = call.value(first.try_get("kafka_cluster"))?;
        let (terms_unsettled, trial, trial_is_held) = call.value(stored_trial(first))?;
        call.done();
        let mut walk = Walk::default();
        while !walk.is_complete() {
            // On the session that a crash of the server would take with it.
            let call = self.lead_session.call_if_open("count held messages").await?;
            walk.go_on(call, self.sql.held_counts.clone()).await?;
        }
        let (held, unblocked) = walk.counts();
        self.open_for_term().await?;
        let mut memory = self.memory();
        memory.bounds = crate::outbox::Bounds::default();
        memory.held.walked(actions, unblocked);
        if let Some(bound) = bound {
            memory.bounds.learn(cursor.high, bound);
        }
        Ok(Start { cursor, held, actions, kafka_cluster, terms_unsettled, trial, trial_is_held })
    }

    pub(crate) async fn remember_kafka_cluster(&self, term: Term, cluster: &str) -> Result<(), OutboxError> {
        let mut call = self.lead_session.call_if_open("remember the Kafka cluster").await?;
        let statement =
            sqlx::query(self.sql.lead_kafka.clone()).bind(term.epoch).bind(term.nonce).bind(cluster);
        let changed = call.execute(statement).await?;
        call.done();
        if changed == 1 { Ok(()) } else { Err(OutboxError::Fenced) }
    }

    pub(crate) async fn store_rewind(&self, term: Term, rewound: &Rewound) -> Result<(), OutboxError> {
        let mut call = self.rest_session.call("remember what may be published twice").await?;
        let statement = sqlx::query(self.sql.lead_rewind.clone())
            .bind(term.epoch)
            .bind(&self.config.relay)
            .bind(rewound.reason.as_str())
            .bind(rewound.first.0)
            .bind(rewound.last.0)
            .bind(i64::try_from(rewound.messages).unwrap_or(i64::MAX));
        call.execute(statement).await?;
        call.done();
        Ok(())
    }

    /// The sessions that memory depends on are opened here and nowhere else within a term. One that was lost later must not come
    /// back in silence: what was read before may be gone, though the postmaster's start time is the same (a backend that
    /// crashes takes every session with it and recovers from the log).
    async fn open_for_term(&self) -> Result<(), OutboxError> {
        for session in [&self.read_session, &self.durable_session] {
            let call = session.call("open sessions").await?;
            let incarnation = call.incarnation();
            call.done();
            self.same_incarnation(incarnation, "open sessions")?;
        }
        Ok(())
    }

    pub(crate) async fn keep_lead(&self, term: Term) -> Result<(), OutboxError> {
        let mut call = self.lead_session.call_if_open("keep the lead").await?;
        let row = call
            .row(
                sqlx::query(self.sql.lead_keep.clone())
                    .bind(i64::from(LEAD_LOCK))
                    .bind(term.epoch)
                    .bind(term.nonce),
            )
            .await?;
        let backend: i32 = call.value(row.try_get("backend"))?;
        let has_lock: bool = call.value(row.try_get("has_lock"))?;
        let has_term: bool = call.value(row.try_get("has_term"))?;
        if self.memory().led.is_none_or(|(_, led)| led != backend) {
            return Err(pooled_by_transaction());
        }
        if !has_term {
            return Err(OutboxError::Fenced);
        }
        if !has_lock {
            return Err(call.failed(CallError::LeadLost));
        }
        call.done();
        Ok(())
    }
}

/// What was found before the lead is taken.
#[derive(Debug)]
struct Verified {
    schema_version: Option<i32>,
    encoding: String,
    high: Option<i64>,
    is_same_cluster: bool,
    is_in_the_past: bool,
    sequence_cache: Option<i64>,
    sequence_last: Option<i64>,
    sequence_is_readable: bool,
    seq_max: Option<i64>,
    sequence_name: Option<String>,
}

impl Verified {
    fn read(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            schema_version: row.try_get("schema_version")?,
            encoding: row.try_get("encoding")?,
            high: row.try_get("high")?,
            is_same_cluster: row.try_get("is_same_cluster")?,
            is_in_the_past: row.try_get("is_in_the_past")?,
            sequence_cache: row.try_get("sequence_cache")?,
            sequence_last: row.try_get("sequence_last")?,
            sequence_is_readable: row.try_get::<Option<bool>, _>("sequence_is_readable")?.unwrap_or(false),
            seq_max: row.try_get("seq_max")?,
            sequence_name: row.try_get("sequence_name")?,
        })
    }

    /// Refuses an outbox whose cursor or sequence would make the relay lose or repeat messages.
    fn judge(&self) -> Result<(), OutboxError> {
        let refused =
            |finding: String, remedy: &str| Err(OutboxError::Refused { finding, remedy: remedy.into() });
        let version = self.schema_version.unwrap_or(0);
        if !(SCHEMA_VERSION_MIN..=SCHEMA_VERSION).contains(&version) {
            let remedy = if version < SCHEMA_VERSION_MIN {
                "run `outboxd migrate`"
            } else {
                "run the outboxd that this schema was installed by, or a later one"
            };
            return refused(
                format!(
                    "the outbox has schema version {version}, this relay serves {SCHEMA_VERSION_MIN} to {SCHEMA_VERSION}"
                ),
                remedy,
            );
        }
        let Some(high) = self.high else {
            return refused(NO_CURSOR.0.into(), NO_CURSOR.1);
        };
        if let Some((finding, remedy)) = encoding_refusal(&self.encoding) {
            return refused(finding, remedy);
        }
        if !self.is_same_cluster || !self.is_in_the_past {
            return Err(foreign());
        }
        if self.sequence_cache != Some(1) {
            return refused(
                format!("the sequence of outbox messages has cache {}", self.sequence_cache.unwrap_or(0)),
                "writers would draw numbers ahead of time and break the order: \
                 `alter table <schema>.message alter column seq set cache 1`",
            );
        }
        let (last, name) = (self.sequence_last.unwrap_or(0), self.sequence_name.as_deref());
        match sequence_refusal(last, high, self.seq_max.unwrap_or(0), name.unwrap_or_default()) {
            Some((finding, remedy)) if self.sequence_is_readable => refused(finding, &remedy),
            Some(_) | None => Ok(()),
        }
    }
}

/// What is said of a sequence that stands too low, and what to do. `name` is the sequence's own, qualified.
pub(crate) fn sequence_refusal(last: i64, high: i64, seq_max: i64, name: &str) -> Option<(String, String)> {
    let needed = high.max(seq_max);
    (last < needed).then(|| {
        let behind = if high >= seq_max {
            format!("the cursor at {high}: new messages would count as dispatched")
        } else {
            format!("the last message at {seq_max}: new messages would be refused")
        };
        (
            format!("the sequence of outbox messages stands at {last}, behind {behind}"),
            format!(
                "if nothing has been written since it was set back: `select setval('{}', {needed})`; otherwise \
                 `outboxd rebase --reason <why>`, which sets it and finds what was written meanwhile",
                name.replace('\'', "''")
            ),
        )
    })
}

/// What is said of a missing cursor, and what to do.
pub(crate) const NO_CURSOR: (&str, &str) = (
    "the cursor row is missing",
    "restore it from a backup of this cluster: without it nobody knows what has been dispatched",
);

/// A database without an encoding holds any bytes as text, and one key that is not UTF-8 would stop everything.
pub(crate) fn encoding_refusal(encoding: &str) -> Option<(String, &'static str)> {
    (encoding == "SQL_ASCII").then(|| {
        (
            "the database has encoding SQL_ASCII: its text may be no UTF-8, and such a message could not be read".to_owned(),
            "move the outbox to a database with a real encoding: `create database .. encoding 'UTF8' template template0`",
        )
    })
}

/// What to do about an outbox whose cursor was settled in another cluster.
pub(crate) const FOREIGN_REMEDY: &str = "run `outboxd rebase --reason <why>`, which says the cursor in the words of this cluster (docs/restore.md); or serve the original";

/// The cursor was settled in another cluster.
pub(crate) fn foreign() -> OutboxError {
    OutboxError::Refused {
        finding: "the cursor belongs to another database cluster: this one was restored or cloned from it"
            .into(),
        remedy: FOREIGN_REMEDY.into(),
    }
}

async fn backend_of(call: &mut Call<'_>) -> Result<i32, OutboxError> {
    let row = call.row(sqlx::query("select pg_backend_pid() as backend")).await?;
    call.value(row.try_get("backend"))
}

/// The cursor row, its bound, and the number of operator actions.
fn stored_cursor(row: &PgRow) -> Result<(Cursor, Option<u64>, i64), sqlx::Error> {
    let pos: Option<i64> = row.try_get("pos")?;
    let until: Option<&str> = row.try_get("until")?;
    let cursor = Cursor {
        high: Seq(row.try_get("high")?),
        seen: Snapshot::new(row.try_get("seen")?),
        catch_up: pos.zip(until).map(|(pos, until)| CatchUp { pos: Seq(pos), until: Snapshot::new(until) }),
    };
    Ok((cursor, row.try_get::<&str, _>("xid_bound")?.parse().ok(), row.try_get("actions")?))
}

/// Unsettled terms before this one, the attempt that has not finished, and whether its message is held.
fn stored_trial(row: &PgRow) -> Result<(u32, Option<Trial>, bool), sqlx::Error> {
    let count =
        |column: &str| Ok::<_, sqlx::Error>(u32::try_from(row.try_get::<i32, _>(column)?).unwrap_or(0));
    let trials = count("trials")?;
    let seq: Option<i64> = row.try_get("trial_seq")?;
    let trial = seq.map(|seq| Trial { seq: Seq(seq), trials });
    Ok((count("terms_unsettled")?, trial, row.try_get("trial_is_held")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Verified {
        Verified {
            schema_version: Some(SCHEMA_VERSION),
            encoding: "UTF8".into(),
            high: Some(10),
            is_same_cluster: true,
            is_in_the_past: true,
            sequence_cache: Some(1),
            sequence_last: Some(10),
            sequence_is_readable: true,
            seq_max: Some(9),
            sequence_name: Some("outbox.message_seq_seq".into()),
        }
    }

    fn refusal(verified: &Verified) -> String {
        match verified.judge() {
            Err(OutboxError::Refused { finding, remedy }) => format!("{finding}; {remedy}"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_outbox_as_it_should_be_is_served() {
        good().judge().unwrap();
        Verified { sequence_last: None, sequence_is_readable: false, ..good() }.judge().unwrap();
        Verified { sequence_last: None, high: Some(0), seq_max: None, ..good() }.judge().unwrap();
    }

    #[test]
    fn a_schema_of_another_version_is_refused_by_name() {
        assert!(refusal(&Verified { schema_version: None, ..good() }).contains("outboxd migrate"));
        let later = refusal(&Verified { schema_version: Some(SCHEMA_VERSION + 1), ..good() });
        assert!(later.contains(&(SCHEMA_VERSION + 1).to_string()));
        let both = Verified { schema_version: None, high: None, ..good() };
        assert!(refusal(&both).contains("outboxd migrate"), "a cursor of a later version may look different");
    }

    #[test]
    fn what_would_lose_or_repeat_messages_is_refused_with_its_remedy() {
        for (verified, words) in [
            (Verified { is_same_cluster: false, ..good() }, "outboxd rebase"),
            (Verified { is_in_the_past: false, ..good() }, "another database cluster"),
            (Verified { sequence_cache: Some(32), ..good() }, "cache 1"),
            (Verified { sequence_last: Some(9), ..good() }, "select setval('outbox.message_seq_seq', 10)"),
            (Verified { sequence_last: None, ..good() }, "outboxd rebase"),
            (Verified { seq_max: Some(12), ..good() }, "select setval('outbox.message_seq_seq', 12)"),
            (Verified { high: None, ..good() }, "restore it from a backup"),
            (Verified { encoding: "SQL_ASCII".into(), ..good() }, "encoding 'UTF8'"),
        ] {
            let text = refusal(&verified);
            assert!(text.contains(words), "{text}");
        }
    }
}
