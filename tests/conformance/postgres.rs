//! The suite over [`PostgresOutbox`], with an application that writes through connections of its own.

use std::time::Duration;

use outboxd_core::{
    CatchUp, Cursor, Hold, HoldReason, HoldState, KeyHash, ReceiptEntry, Seq, Snapshot, receipts,
};
use outboxd_engine::{
    AuditedAction, HeldFilter, Operate, OperateReplays as _, Outbox as _, PageLimit, ReleaseQuery,
    ReplayChange, Settlement,
};
use outboxd_postgres::{LEAD_LOCK, PostgresConfig, PostgresOperator, PostgresOutbox, SchemaName};
use outboxd_testkit::conformance::replaying::everything_again;
use outboxd_testkit::conformance::{Audited, Harness, Intent, Operated};
use outboxd_testkit::postgres::Database;
use sqlx::{AssertSqlSafe, PgConnection, Row};
use uuid::Uuid;

use crate::migrations::{installed, run, wait_until};

struct PostgresHarness {
    database: Database,
}

impl PostgresHarness {
    async fn create() -> Self {
        Self { database: installed().await }
    }

    fn config(&self) -> PostgresConfig {
        PostgresConfig::from_url(&self.database.url(), SchemaName::default(), "conformance").unwrap()
    }

    async fn id_of(&self, seq: Seq) -> Uuid {
        let held = self.operator().held_list(&HeldFilter::default()).await.unwrap();
        held.iter().find(|held| held.seq == seq).unwrap().id
    }
}

/// Inserts, in the transaction that the connection is in.
async fn insert(connection: &mut PgConnection, intents: &[Intent]) -> Vec<Seq> {
    let mut seqs = Vec::new();
    for intent in intents {
        let headers = (!intent.headers.is_empty()).then(|| {
            let object: serde_json::Map<_, _> =
                intent.headers.iter().map(|(name, value)| (name.clone(), value.clone().into())).collect();
            serde_json::Value::from(object)
        });
        let row = sqlx::query(
            "insert into outbox.message
               (topic, key, payload, headers, partition, content_type, correlation_id, causation_id, traceparent, tracestate,
                deliver_after)
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, clock_timestamp() + make_interval(secs => $11))
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

impl Harness for PostgresHarness {
    type Outbox = PostgresOutbox;
    type Open = PgConnection;

    fn relay(&self) -> PostgresOutbox {
        PostgresOutbox::new(self.config())
    }

    async fn commit(&self, intents: &[Intent]) -> Vec<Seq> {
        let (mut open, seqs) = self.open(intents).await.unwrap();
        run(&mut open, "commit").await.unwrap();
        seqs
    }

    async fn roll_back(&self, intents: &[Intent]) {
        let (mut open, _) = self.open(intents).await.unwrap();
        run(&mut open, "rollback").await.unwrap();
    }

    async fn open(&self, intents: &[Intent]) -> Option<(PgConnection, Vec<Seq>)> {
        let mut connection = self.database.connect().await;
        run(&mut connection, "begin").await.unwrap();
        let seqs = insert(&mut connection, intents).await;
        Some((connection, seqs))
    }

    async fn commit_open(&self, mut open: PgConnection) {
        run(&mut open, "commit").await.unwrap();
    }

    async fn age(&self, by: Duration) {
        let mut connection = self.database.connect().await;
        for (table, column) in [
            ("message", "created_at"),
            ("message", "deliver_after"),
            ("scheduled", "due_at"),
            ("cancelled", "cancelled_at"),
            ("receipt", "settled_at"),
            ("held", "held_at"),
            ("held", "due_at"),
            ("held_action", "at"),
        ] {
            let sql = format!(
                "update outbox.{table} set {column} = {column} - make_interval(secs => {})",
                by.as_secs_f64()
            );
            run(&mut connection, &sql).await.unwrap();
        }
    }

    async fn fence(&self) {
        run(
            &mut self.database.connect().await,
            "update outbox.cursor set epoch = epoch + 1, nonce = gen_random_uuid()",
        )
        .await
        .unwrap();
    }

    async fn vanish(&self, relay: PostgresOutbox) {
        drop(relay);
        let freed = format!(
            "not exists (select from pg_locks l join pg_database d on d.oid = l.database
               where l.locktype = 'advisory' and l.classid = {LEAD_LOCK}::bigint::oid and d.datname = current_database())"
        );
        wait_until(&mut self.database.connect().await, &freed).await;
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
        let (mut open, seqs) = self.open(std::slice::from_ref(intent)).await.unwrap();
        let same = format!(
            "update outbox.message set id = (select id from outbox.message where seq = {of}) where seq = {}; commit",
            seqs[0]
        );
        run(&mut open, &same).await.unwrap();
        seqs[0]
    }

    async fn cancel(&self, seq: Seq) {
        let sql = format!("select outbox.cancel(id) from outbox.message where seq = {seq}");
        let cancelled: bool = sqlx::query_scalar(AssertSqlSafe(sql))
            .fetch_one(&mut self.database.connect().await)
            .await
            .unwrap();
        assert!(cancelled);
    }

    async fn replay(&self) -> i64 {
        everything_again(&self.operator()).await
    }

    async fn change_replay(&self, replay: i64, change: ReplayChange) {
        let action = AuditedAction { who: "ops".into(), why: "test".into() };
        self.operator().replay_change(replay, change, &action).await.unwrap();
    }

    async fn scheduled(&self) -> Vec<Seq> {
        let seqs: Vec<i64> = sqlx::query_scalar("select seq from outbox.scheduled order by seq")
            .fetch_all(&mut self.database.connect().await)
            .await
            .unwrap();
        seqs.into_iter().map(Seq).collect()
    }

    async fn cursor(&self) -> Cursor {
        let row =
            sqlx::query("select high, seen::text as seen, pos, until::text as until from outbox.cursor")
                .fetch_one(&mut self.database.connect().await)
                .await
                .unwrap();
        let catch_up = row
            .get::<Option<i64>, _>("pos")
            .map(|pos| CatchUp { pos: Seq(pos), until: Snapshot::new(row.get::<&str, _>("until")) });
        Cursor { high: Seq(row.get("high")), seen: Snapshot::new(row.get("seen")), catch_up }
    }

    async fn receipts(&self) -> Vec<ReceiptEntry> {
        let rows = sqlx::query("select seq_first, seq_last, messages, receipts from outbox.receipt")
            .fetch_all(&mut self.database.connect().await)
            .await
            .unwrap();
        let mut entries = Vec::new();
        for row in rows {
            let unpacked = receipts::decode(row.get("receipts")).unwrap();
            assert_eq!(row.get::<i32, _>("messages"), i32::try_from(unpacked.len()).unwrap());
            assert_eq!(row.get::<i64, _>("seq_first"), unpacked[0].seq.0);
            assert_eq!(row.get::<i64, _>("seq_last"), unpacked[unpacked.len() - 1].seq.0);
            entries.extend(unpacked);
        }
        entries.sort_by_key(|entry| entry.seq);
        entries
    }

    async fn held(&self) -> Vec<(Seq, HoldState, HoldReason, u32)> {
        let rows = sqlx::query("select seq, state, reason, attempts from outbox.held order by seq")
            .fetch_all(&mut self.database.connect().await)
            .await
            .unwrap();
        rows.iter()
            .map(|row| {
                let state = HoldState::parse(row.get("state")).unwrap();
                let reason = HoldReason::parse(row.get("reason")).unwrap();
                let attempts = u32::try_from(row.get::<i32, _>("attempts")).unwrap();
                (Seq(row.get("seq")), state, reason, attempts)
            })
            .collect()
    }

    async fn intents(&self) -> Vec<Seq> {
        let seqs: Vec<i64> = sqlx::query_scalar("select seq from outbox.message order by seq")
            .fetch_all(&mut self.database.connect().await)
            .await
            .unwrap();
        seqs.into_iter().map(Seq).collect()
    }
}

impl Operated for PostgresHarness {
    type Operator = PostgresOperator;

    fn operator(&self) -> PostgresOperator {
        PostgresOperator::new(self.config())
    }

    async fn operations(&self) -> Vec<(String, String)> {
        sqlx::query_as("select kind, details::text from outbox.operation order by operation")
            .fetch_all(&mut self.database.connect().await)
            .await
            .unwrap()
    }

    async fn edits(&self) -> i64 {
        sqlx::query_scalar("select count(*) from outbox.held_edit")
            .fetch_one(&mut self.database.connect().await)
            .await
            .unwrap()
    }

    async fn audit(&self) -> Vec<Audited> {
        let sql = "select kind, id, who, why from outbox.held_action order by action";
        let rows = sqlx::query(sql).fetch_all(&mut self.database.connect().await).await.unwrap();
        rows.iter().map(|row| (row.get("kind"), row.get("id"), row.get("who"), row.get("why"))).collect()
    }
}

outboxd_testkit::outbox_conformance!(PostgresHarness::create());
outboxd_testkit::operator_conformance!(PostgresHarness::create());

/// The loop has tried it once more while an operator discards it: what the operator commits is what holds.
#[tokio::test]
async fn a_message_that_is_being_discarded_while_its_failure_is_settled_does_not_come_back() {
    let harness = PostgresHarness::create().await;
    harness.commit(&[Intent::keyed("orders", "a", "poison")]).await;
    let relay = harness.relay();
    let term = relay.lead().await.unwrap().unwrap();
    let start = relay.start(term).await.unwrap();
    let page = relay.read(&start.cursor, PageLimit { messages: 10, bytes: 1 << 20 }).await.unwrap().page;
    let after = page.cursor_after();
    let hold = |attempts| Hold {
        seq: page.messages[0].seq,
        topic: "orders".into(),
        key_hash: KeyHash::of(&page.messages[0]),
        state: HoldState::Retry,
        reason: HoldReason::UnknownError,
        error: Some("refused".into()),
        attempts,
        due_in: Duration::ZERO,
        dead_letter: None,
    };
    let settlement = |before: &Cursor, attempts| Settlement {
        term,
        before: before.clone(),
        after: after.clone(),
        receipts: Vec::new(),
        receipts_out_of_order: Vec::new(),
        holds: vec![hold(attempts)],
        released: Vec::new(),
        scheduled: Vec::new(),
        trial: None,
        proves_term: true,
    };
    relay.settle(settlement(&start.cursor, 1)).await.unwrap();
    let mut operator = harness.database.connect().await;
    run(
        &mut operator,
        "begin; delete from outbox.held;
         insert into outbox.held_action (kind, id, seq, topic, reason_held, who, why)
           select 'discard', id, seq, topic, 'unknown_error', 'ops', 'test' from outbox.message",
    )
    .await
    .unwrap();
    let settle = relay.settle(settlement(&after, 2));
    let commits = async {
        wait_until(
            &mut harness.database.connect().await,
            "exists (select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock')",
        )
        .await;
        run(&mut operator, "commit").await.unwrap();
    };
    let (settled, ()) = tokio::join!(settle, commits);
    settled.unwrap();
    assert_eq!(harness.held().await, []);
}

/// D3. What an operator or the sweep puts among the held messages after they were counted is not released with them: its key would
/// seem free.
#[tokio::test]
async fn what_comes_between_the_counts_and_the_due_messages_waits_for_the_next_round() {
    let harness = PostgresHarness::create().await;
    harness.commit(&[Intent::keyed("orders", "a", "one")]).await;
    let relay = harness.relay();
    let term = relay.lead().await.unwrap().unwrap();
    let start = relay.start(term).await.unwrap();
    let limit = PageLimit { messages: 10, bytes: 1 << 20 };
    let page = relay.read(&start.cursor, limit).await.unwrap().page;
    let settlement = Settlement {
        term,
        before: start.cursor.clone(),
        after: page.cursor_after(),
        receipts: Vec::new(),
        receipts_out_of_order: Vec::new(),
        holds: Vec::new(),
        released: Vec::new(),
        scheduled: Vec::new(),
        trial: None,
        proves_term: true,
    };
    relay.settle(settlement).await.unwrap();
    let query = ReleaseQuery { term, topics_held: Vec::new(), unblocked: Vec::new(), limit };
    let mut operator = harness.database.connect().await;
    // Only the due messages are read with what was edited about them.
    run(&mut operator, "begin; lock table outbox.held_edit in access exclusive mode").await.unwrap();
    let acts = async {
        wait_until(
            &mut harness.database.connect().await,
            "exists (select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock')",
        )
        .await;
        run(
            &mut operator,
            "insert into outbox.held (seq, id, topic, key_hash, state, reason, due_at)
               select seq, id, topic, 7, 'retry', 'stranded', now() - interval '1 minute' from outbox.message;
             insert into outbox.held_action (kind, id, seq, topic, reason_held, who, why)
               select 'sweep', id, seq, topic, 'stranded', 'relay', 'test' from outbox.message; commit",
        )
        .await
        .unwrap();
    };
    let (release, ()) = tokio::join!(relay.due(&query, start.actions), acts);
    let release = release.unwrap();
    assert!(release.due.is_empty() && release.change.is_none(), "{release:?}");
    let release = relay.due(&query, start.actions).await.unwrap();
    let counted = release.change.expect("the counts come again").held;
    assert_eq!((release.due.len(), counted.len(), counted[0].key_hash), (1, 1, KeyHash::from_i64(7)));
}
