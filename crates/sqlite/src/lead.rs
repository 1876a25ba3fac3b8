//! The lead: a lease in the cursor row.
//!
//! A relay leads while the time lies between `kept_at` and `lease_until`; settling and [`keep`](outboxd_engine::Outbox::keep)
//! move both. Whoever finds the lease over may take it: the epoch grows by one and a random nonce is drawn, in one
//! `BEGIN IMMEDIATE` transaction that is synced. A leader that was frozen beyond its lease finds its nonce gone and is
//! refused. One whose lease ran out while nobody wanted the lead simply goes on.
//!
//! The clock is the machine's, through SQLite: all processes of a SQLite file run on one machine. When it is set back behind
//! `kept_at` the lease counts as over, because waiting for the old time to come again could take for ever.

use std::time::Duration;

use outboxd_core::{Cursor, Seq, Snapshot};
use outboxd_engine::{OutboxError, Rewound, Start, Term, Trial};
use sqlx::{Connection, Row, SqliteConnection};
use tokio::time::timeout;
use uuid::Uuid;

use crate::file::DatabaseFile;
use crate::held::held_counts;
use crate::migrate::{SCHEMA_VERSION, SCHEMA_VERSION_MIN, version_of};
use crate::outbox::{SqliteOutbox, TermState};
use crate::session::Failure;

/// Giving the lead back must not hold up a process that ends.
const STEP_DOWN_DEADLINE: Duration = Duration::from_secs(2);

impl SqliteOutbox {
    pub(crate) async fn take_lead(&self) -> Result<Option<Term>, OutboxError> {
        const DOING: &str = "take the lead";
        let mut lent = self.lead_session.lend(&self.config, DOING, None).await?;
        let nonce = Uuid::new_v4();
        let file = lent.file().clone();
        let taking = async {
            let connection = lent.connection();
            verify_version(connection).await?;
            if lease_is_alive(connection).await? {
                return Ok(None);
            }
            verify_file(connection).await?;
            self.set_term_state(TermState { nonce: Some(nonce), file: Some(file) });
            bump_epoch(connection, nonce, &self.config.relay, self.config.lease).await
        };
        let outcome = timeout(self.config.deadline, taking).await;
        let epoch = lent.finish(DOING, outcome)?;
        if epoch.is_none() {
            self.set_term_state(TermState::default());
        }
        Ok(epoch.map(|epoch| Term { epoch, nonce, keep_every: self.config.lease / 3 }))
    }

    pub(crate) async fn read_start(&self, term: Term) -> Result<Start, OutboxError> {
        const DOING: &str = "read the cursor";
        let file = self.term_file()?;
        let Some(mut lent) = self.lead_session.lend_open(&self.config, DOING, &file).await? else {
            return Err(lost(DOING));
        };
        let outcome = timeout(lent.deadline(), start(lent.connection(), term)).await;
        lent.finish(DOING, outcome)
    }

    pub(crate) async fn renew_lease(&self, term: Term) -> Result<(), OutboxError> {
        const DOING: &str = "renew the lease";
        let file = self.term_file()?;
        let Some(mut lent) = self.lead_session.lend_open(&self.config, DOING, &file).await? else {
            return Err(lost(DOING));
        };
        let renewing = async {
            let renewed = sqlx::query(include_str!("sql/keep.sql"))
                .bind(term.epoch)
                .bind(term.nonce.to_string())
                .bind(self.config.lease.as_secs_f64())
                .execute(lent.connection())
                .await?;
            if renewed.rows_affected() == 1 { Ok(()) } else { Err(OutboxError::Fenced.into()) }
        };
        let outcome = timeout(self.config.deadline, renewing).await;
        lent.finish(DOING, outcome)
    }

    pub(crate) async fn remember_kafka_cluster(&self, term: Term, cluster: &str) -> Result<(), OutboxError> {
        const DOING: &str = "remember the Kafka cluster";
        let file = self.term_file()?;
        let Some(mut lent) = self.lead_session.lend_open(&self.config, DOING, &file).await? else {
            return Err(lost(DOING));
        };
        let remembering = async {
            let remembered = sqlx::query(include_str!("sql/remember_kafka.sql"))
                .bind(term.epoch)
                .bind(term.nonce.to_string())
                .bind(cluster)
                .execute(lent.connection())
                .await?;
            if remembered.rows_affected() == 1 { Ok(()) } else { Err(OutboxError::Fenced.into()) }
        };
        let outcome = timeout(self.config.deadline, remembering).await;
        lent.finish(DOING, outcome)
    }

    pub(crate) async fn store_rewind(&self, term: Term, rewound: &Rewound) -> Result<(), OutboxError> {
        const DOING: &str = "remember what may be published twice";
        let file = self.term_file()?;
        let mut lent = self.rest_session.lend(&self.config, DOING, Some(&file)).await?;
        let storing = async {
            sqlx::query(include_str!("sql/rewind.sql"))
                .bind(term.epoch)
                .bind(&self.config.relay)
                .bind(rewound.reason.as_str())
                .bind(rewound.first.0)
                .bind(rewound.last.0)
                .bind(i64::try_from(rewound.messages).unwrap_or(i64::MAX))
                .execute(lent.connection())
                .await?;
            Ok(())
        };
        let outcome = timeout(self.config.deadline, storing).await;
        lent.finish(DOING, outcome)
    }

    pub(crate) async fn give_back_lead(&self) {
        const DOING: &str = "give the lead back";
        let TermState { nonce, file } = self.term_state();
        self.set_term_state(TermState::default());
        if let Some(nonce) = nonce {
            let giving_back = async {
                let mut lent = self.lead_session.lend(&self.config, DOING, file.as_ref()).await?;
                let released = step_down(lent.connection(), nonce).await;
                lent.finish(DOING, Ok(released.map_err(Failure::from)))
            };
            match timeout(STEP_DOWN_DEADLINE, giving_back).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::debug!(target: "outboxd::lead", %error, "the lease is not given back; it runs out");
                }
                Err(_) => {
                    tracing::debug!(target: "outboxd::lead", "the lease is not given back in time; it runs out");
                }
            }
        }
        for session in [&self.lead_session, &self.read_session, &self.rest_session] {
            session.close(STEP_DOWN_DEADLINE).await;
        }
    }

    /// The file of the term; without one the term is over.
    pub(crate) fn term_file(&self) -> Result<DatabaseFile, OutboxError> {
        self.term_state().file.ok_or(OutboxError::Fenced)
    }
}

/// The lead session is gone, for whatever reason: the engine has to lead again.
#[derive(Debug, thiserror::Error)]
#[error("the lead session was lost")]
struct SessionLost;

pub(crate) fn lost(doing: &'static str) -> OutboxError {
    OutboxError::unavailable(doing, SessionLost)
}

/// This version serves the schema that it was built for and the one before.
async fn verify_version(connection: &mut SqliteConnection) -> Result<(), Failure> {
    match version_of(connection).await? {
        Some(version) if (SCHEMA_VERSION_MIN..=SCHEMA_VERSION).contains(&version) => Ok(()),
        Some(version) if version < SCHEMA_VERSION_MIN => Err(refused(
            format!(
                "the outbox has schema version {version}, this relay serves {SCHEMA_VERSION_MIN} to {SCHEMA_VERSION}"
            ),
            "run `outboxd migrate`",
        )),
        Some(version) => Err(refused(
            format!(
                "the outbox has schema version {version}, this relay serves {SCHEMA_VERSION_MIN} to {SCHEMA_VERSION}"
            ),
            "run a newer outboxd",
        )),
        None => Err(refused("the database has no outbox".to_owned(), "run `outboxd migrate`")),
    }
}

async fn lease_is_alive(connection: &mut SqliteConnection) -> Result<bool, Failure> {
    let alive: Option<bool> =
        sqlx::query_scalar(include_str!("sql/leader.sql")).fetch_one(connection).await?;
    Ok(alive.unwrap_or(false))
}

/// What must hold of the file for the cursor to mean anything. Checked when the lead is taken: none of it can change under
/// an open session, except the sequence, which the trigger on inserts watches.
async fn verify_file(connection: &mut SqliteConnection) -> Result<(), Failure> {
    let encoding: String = sqlx::query_scalar("pragma encoding").fetch_one(&mut *connection).await?;
    if encoding != "UTF-8" {
        return Err(refused(
            format!(
                "the database's encoding is {encoding}, so text is not stored as the bytes that Kafka gets"
            ),
            "put the outbox in a database whose encoding is UTF-8",
        ));
    }
    let mode: String = sqlx::query_scalar("pragma journal_mode").fetch_one(&mut *connection).await?;
    if mode != "wal" {
        let mode: String =
            sqlx::query_scalar("pragma journal_mode = wal").fetch_one(&mut *connection).await?;
        if mode != "wal" {
            return Err(refused(
                format!("the database stays in journal mode {mode}"),
                "put it on a local file system and run `pragma journal_mode = wal`",
            ));
        }
        tracing::info!(target: "outboxd::lead", "the database is in WAL mode now");
    }
    match sequence_finding(connection).await? {
        Some((finding, remedy)) => Err(refused(finding, &remedy)),
        None => Ok(()),
    }
}

/// What is wrong with the sequence of intents, and what to do; nothing, if nothing is.
pub(crate) async fn sequence_finding(
    connection: &mut SqliteConnection,
) -> Result<Option<(String, String)>, sqlx::Error> {
    let row = sqlx::query(include_str!("sql/sequence.sql")).fetch_one(connection).await?;
    let definition: String = row.try_get("definition")?;
    if !definition.to_ascii_lowercase().contains("autoincrement") {
        return Ok(Some((
            "outbox_message.seq is not AUTOINCREMENT: it would start again below the cursor after a purge"
                .to_owned(),
            "recreate the table as the migration has it".to_owned(),
        )));
    }
    let (drawn, high): (i64, i64) = (row.try_get("drawn")?, row.try_get("high")?);
    if drawn < high {
        return Ok(Some((
            format!("the sequence of outbox_message stands at {drawn}, below the cursor at {high}"),
            format!(
                "run `delete from sqlite_sequence where name = 'outbox_message'; \
                 insert into sqlite_sequence (name, seq) values ('outbox_message', {high})`"
            ),
        )));
    }
    Ok(None)
}

/// Takes the lead and syncs: an epoch that a power loss takes back would be given out twice.
async fn bump_epoch(
    connection: &mut SqliteConnection,
    nonce: Uuid,
    relay: &str,
    lease: Duration,
) -> Result<Option<i64>, Failure> {
    sqlx::query("pragma synchronous = full").execute(&mut *connection).await?;
    let mut transaction = connection.begin_with("begin immediate").await?;
    let led = sqlx::query(include_str!("sql/lead.sql"))
        .bind(nonce.to_string())
        .bind(relay)
        .bind(lease.as_secs_f64())
        .fetch_optional(&mut *transaction)
        .await?;
    let epoch = match led {
        None => None,
        Some(led) => {
            let epoch: i64 = led.try_get("epoch")?;
            sqlx::query(include_str!("sql/lead_term.sql"))
                .bind(epoch)
                .bind(relay)
                .bind(led.try_get::<String, _>("led_at")?)
                .bind(led.try_get::<i64, _>("high")?)
                .execute(&mut *transaction)
                .await?;
            Some(epoch)
        }
    };
    transaction.commit().await?;
    sqlx::query("pragma synchronous = normal").execute(&mut *connection).await?;
    Ok(epoch)
}

/// Both in one transaction: a term that ended in order is one whose lease was given back.
async fn step_down(connection: &mut SqliteConnection, nonce: Uuid) -> Result<(), sqlx::Error> {
    let mut transaction = connection.begin_with("begin immediate").await?;
    for statement in [include_str!("sql/step_down_term.sql"), include_str!("sql/step_down.sql")] {
        sqlx::query(statement).bind(nonce.to_string()).execute(&mut *transaction).await?;
    }
    transaction.commit().await
}

async fn start(connection: &mut SqliteConnection, term: Term) -> Result<Start, Failure> {
    // One transaction: cursor, held messages and the number of actions belong together.
    let mut transaction = connection.begin().await?;
    let row = sqlx::query(include_str!("sql/start.sql"))
        .bind(term.epoch)
        .bind(term.nonce.to_string())
        .fetch_optional(&mut *transaction)
        .await?
        .ok_or(OutboxError::Fenced)?;
    let cursor = Cursor { high: Seq(row.try_get("high")?), seen: Snapshot::none(), catch_up: None };
    let actions = row.try_get("actions")?;
    let kafka_cluster = row.try_get("kafka_cluster")?;
    let held = held_counts(&mut transaction).await?;
    transaction.commit().await?;
    let trial: Option<i64> = row.try_get("trial_seq")?;
    let trials = row.try_get("trials")?;
    Ok(Start {
        cursor,
        held,
        actions,
        kafka_cluster,
        terms_unsettled: row.try_get("terms_unsettled")?,
        trial: trial.map(|seq| Trial { seq: Seq(seq), trials }),
        trial_is_held: row.try_get("trial_is_held")?,
    })
}

pub(crate) fn refused(finding: String, remedy: &str) -> Failure {
    OutboxError::Refused { finding, remedy: remedy.to_owned() }.into()
}
