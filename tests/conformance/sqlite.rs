//! The suite over [`SqliteOutbox`], with an application that writes through connections of its own.

use std::time::Duration;

use outboxd_core::{Cursor, HoldReason, HoldState, ReceiptEntry, Seq, Snapshot, receipts};
use outboxd_engine::{AuditedAction, HeldFilter, Operate, OperateReplays as _, ReplayChange};
use outboxd_sqlite::{Migrator, SqliteConfig, SqliteOperator, SqliteOutbox};
use outboxd_testkit::conformance::replaying::everything_again;
use outboxd_testkit::conformance::{Audited, Harness, Intent, Operated};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection, Row, SqliteConnection};
use uuid::Uuid;

struct SqliteHarness {
    directory: tempfile::TempDir,
}

impl SqliteHarness {
    async fn create() -> Self {
        let harness = Self { directory: tempfile::tempdir().unwrap() };
        let applied = Migrator::new(harness.config()).apply().await.unwrap();
        assert_eq!(applied.len(), outboxd_sqlite::migrate::MIGRATIONS.len());
        harness
    }

    fn config(&self) -> SqliteConfig {
        SqliteConfig::new(self.directory.path().join("shop.db"))
    }

    async fn application(&self) -> SqliteConnection {
        SqliteConnectOptions::new()
            .filename(self.config().path)
            .busy_timeout(Duration::from_secs(10))
            .connect()
            .await
            .unwrap()
    }

    async fn id_of(&self, seq: Seq) -> Uuid {
        let held = SqliteOperator::new(self.config()).held_list(&HeldFilter::default()).await.unwrap();
        held.iter().find(|held| held.seq == seq).unwrap().id
    }
}

/// Inserts, in the transaction that the connection is in.
async fn insert(connection: &mut SqliteConnection, intents: &[Intent]) -> Vec<Seq> {
    let mut seqs = Vec::new();
    for intent in intents {
        let headers = (!intent.headers.is_empty()).then(|| {
            let object: serde_json::Map<_, _> =
                intent.headers.iter().map(|(name, value)| (name.clone(), value.clone().into())).collect();
            serde_json::Value::from(object).to_string()
        });
        let row = sqlx::query(
            "insert into outbox_message
               (topic, key, payload, headers, partition, content_type, correlation_id, causation_id, traceparent, tracestate,
                deliver_after)
             values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '+' || ? || ' seconds'))
             returning seq",
        )
        .bind(&intent.topic)
        .bind(&intent.key)
        .bind(&intent.payload)
        .bind(headers)
        .bind(intent.partition)
        .bind(&intent.content_type)
        .bind(&intent.correlation_id)
        .bind(&intent.causation_id)
        .bind(&intent.traceparent)
        .bind(&intent.tracestate)
        .bind(intent.deliver_in.map(|after| after.as_secs_f64()))
        .fetch_one(&mut *connection)
        .await
        .unwrap();
        seqs.push(Seq(row.get("seq")));
    }
    seqs
}

impl Harness for SqliteHarness {
    type Outbox = SqliteOutbox;
    type Open = std::convert::Infallible;

    fn relay(&self) -> SqliteOutbox {
        SqliteOutbox::new(self.config())
    }

    async fn commit(&self, intents: &[Intent]) -> Vec<Seq> {
        let mut application = self.application().await;
        let mut transaction = application.begin_with("begin immediate").await.unwrap();
        let seqs = insert(&mut transaction, intents).await;
        transaction.commit().await.unwrap();
        seqs
    }

    async fn roll_back(&self, intents: &[Intent]) {
        let mut application = self.application().await;
        let mut transaction = application.begin_with("begin immediate").await.unwrap();
        insert(&mut transaction, intents).await;
        transaction.rollback().await.unwrap();
    }

    async fn open(&self, _intents: &[Intent]) -> Option<(Self::Open, Vec<Seq>)> {
        None
    }

    async fn commit_open(&self, open: Self::Open) {
        match open {}
    }

    async fn age(&self, by: Duration) {
        let mut application = self.application().await;
        let mut transaction = application.begin_with("begin immediate").await.unwrap();
        // Intents are never changed; only a test may put that trigger aside.
        let trigger: String =
            sqlx::query_scalar("select sql from sqlite_schema where name = 'outbox_message_keep_content'")
                .fetch_one(&mut *transaction)
                .await
                .unwrap();
        sqlx::query("drop trigger outbox_message_keep_content").execute(&mut *transaction).await.unwrap();
        for (table, column) in [
            ("outbox_message", "created_at"),
            ("outbox_message", "deliver_after"),
            ("outbox_scheduled", "due_at"),
            ("outbox_cancelled", "cancelled_at"),
            ("outbox_receipt", "settled_at"),
            ("outbox_held", "held_at"),
            ("outbox_held", "due_at"),
            ("outbox_held_action", "at"),
        ] {
            let sql = format!(
                "update {table} set {column} = strftime('%Y-%m-%dT%H:%M:%fZ', {column}, printf('-%.3f seconds', ?))
                 where {column} is not null"
            );
            sqlx::query(sqlx::AssertSqlSafe(sql))
                .bind(by.as_secs_f64())
                .execute(&mut *transaction)
                .await
                .unwrap();
        }
        sqlx::query(sqlx::AssertSqlSafe(trigger)).execute(&mut *transaction).await.unwrap();
        transaction.commit().await.unwrap();
    }

    async fn fence(&self) {
        sqlx::query("update outbox_cursor set epoch = epoch + 1, nonce = ?")
            .bind(Uuid::new_v4().to_string())
            .execute(&mut self.application().await)
            .await
            .unwrap();
    }

    async fn vanish(&self, relay: SqliteOutbox) {
        drop(relay);
        sqlx::query("update outbox_cursor set lease_until = kept_at")
            .execute(&mut self.application().await)
            .await
            .unwrap();
    }

    async fn retry(&self, seq: Seq) {
        let id = self.id_of(seq).await;
        let action = AuditedAction { who: "ops".into(), why: "test".into() };
        self.operator().held_retry(id, &action).await.unwrap();
    }

    async fn discard(&self, seq: Seq) {
        let id = self.id_of(seq).await;
        let action = AuditedAction { who: "ops".into(), why: "test".into() };
        self.operator().held_discard(id, &action).await.unwrap();
    }

    async fn commit_again(&self, of: Seq, intent: &Intent) -> Seq {
        // Times are in milliseconds.
        tokio::time::sleep(Duration::from_millis(5)).await;
        let id: String = sqlx::query_scalar("select id from outbox_message where seq = ?")
            .bind(of.0)
            .fetch_one(&mut self.application().await)
            .await
            .unwrap();
        let after = intent.deliver_in.unwrap_or_default().as_secs_f64();
        sqlx::query_scalar(
            "insert into outbox_message (id, topic, key, payload, deliver_after)
             values (?, ?, ?, ?, strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '+' || ? || ' seconds')) returning seq",
        )
        .bind(id)
        .bind(&intent.topic)
        .bind(&intent.key)
        .bind(&intent.payload)
        .bind(after)
        .fetch_one(&mut self.application().await)
        .await
        .map(Seq)
        .unwrap()
    }

    async fn cancel(&self, seq: Seq) {
        sqlx::query("insert into outbox_cancelled (id) select id from outbox_message where seq = ?")
            .bind(seq.0)
            .execute(&mut self.application().await)
            .await
            .unwrap();
    }

    async fn replay(&self) -> i64 {
        everything_again(&self.operator()).await
    }

    async fn change_replay(&self, replay: i64, change: ReplayChange) {
        let action = AuditedAction { who: "ops".into(), why: "test".into() };
        self.operator().replay_change(replay, change, &action).await.unwrap();
    }

    async fn scheduled(&self) -> Vec<Seq> {
        let seqs: Vec<i64> = sqlx::query_scalar("select seq from outbox_scheduled order by seq")
            .fetch_all(&mut self.application().await)
            .await
            .unwrap();
        seqs.into_iter().map(Seq).collect()
    }

    async fn cursor(&self) -> Cursor {
        let high: i64 = sqlx::query_scalar("select high from outbox_cursor")
            .fetch_one(&mut self.application().await)
            .await
            .unwrap();
        Cursor { high: Seq(high), seen: Snapshot::none(), catch_up: None }
    }

    async fn receipts(&self) -> Vec<ReceiptEntry> {
        let rows = sqlx::query("select seq_first, seq_last, messages, receipts from outbox_receipt")
            .fetch_all(&mut self.application().await)
            .await
            .unwrap();
        let mut entries = Vec::new();
        for row in rows {
            let unpacked = receipts::decode(row.get("receipts")).unwrap();
            assert_eq!(row.get::<i64, _>("messages"), i64::try_from(unpacked.len()).unwrap());
            assert_eq!(row.get::<i64, _>("seq_first"), unpacked[0].seq.0);
            assert_eq!(row.get::<i64, _>("seq_last"), unpacked[unpacked.len() - 1].seq.0);
            entries.extend(unpacked);
        }
        entries.sort_by_key(|entry| entry.seq);
        entries
    }

    async fn held(&self) -> Vec<(Seq, HoldState, HoldReason, u32)> {
        let rows = sqlx::query("select seq, state, reason, attempts from outbox_held order by seq")
            .fetch_all(&mut self.application().await)
            .await
            .unwrap();
        rows.iter()
            .map(|row| {
                let state = HoldState::parse(row.get("state")).unwrap();
                let reason = HoldReason::parse(row.get("reason")).unwrap();
                (Seq(row.get("seq")), state, reason, row.get("attempts"))
            })
            .collect()
    }

    async fn intents(&self) -> Vec<Seq> {
        let seqs: Vec<i64> = sqlx::query_scalar("select seq from outbox_message order by seq")
            .fetch_all(&mut self.application().await)
            .await
            .unwrap();
        seqs.into_iter().map(Seq).collect()
    }
}

impl Operated for SqliteHarness {
    type Operator = SqliteOperator;

    fn operator(&self) -> SqliteOperator {
        SqliteOperator::new(self.config())
    }

    async fn operations(&self) -> Vec<(String, String)> {
        sqlx::query_as("select kind, details from outbox_operation order by operation")
            .fetch_all(&mut self.application().await)
            .await
            .unwrap()
    }

    async fn edits(&self) -> i64 {
        sqlx::query_scalar("select count(*) from outbox_held_edit")
            .fetch_one(&mut self.application().await)
            .await
            .unwrap()
    }

    async fn audit(&self) -> Vec<Audited> {
        let rows = sqlx::query("select kind, id, who, why from outbox_held_action order by action")
            .fetch_all(&mut self.application().await)
            .await
            .unwrap();
        rows.iter()
            .map(|row| {
                (row.get("kind"), row.get::<String, _>("id").parse().unwrap(), row.get("who"), row.get("why"))
            })
            .collect()
    }
}

outboxd_testkit::outbox_conformance!(SqliteHarness::create());
outboxd_testkit::operator_conformance!(SqliteHarness::create());
