//! The statements of a trace over many retained intents, with the optional indexes: nothing is walked but what was asked for. And without
//! them: the answer comes all the same, and says what it cost.

use outboxd_core::receipts::RUN_SPAN;
use outboxd_postgres::SchemaName;
use outboxd_postgres::sql::trace_statements;
use outboxd_testkit::relay::Setup;
use outboxd_testkit::shared;
use sqlx::{AssertSqlSafe, PgConnection, Row};

use crate::migrations::{installed, run, text};
use crate::support::BINARY;

const INDEXES: &str = include_str!("../../migrations/trace-indexes/postgres.sql");
const RETAINED: i64 = 200_000;
/// Intents that one trace shows at most; each is a few probes of a few indexes.
const SHOWN: i64 = 100;
const BLOCKS_MAX: i64 = 40 * SHOWN;
/// What grows with what is retained. Terms and replays do not.
const LARGE: [&str; 8] =
    ["message", "receipt", "held", "hold_history", "held_action", "scheduled", "cancelled", "rewind"];

/// Intents of two hundred transactions, with everything that a long life leaves behind.
async fn fill(connection: &mut PgConnection) {
    for sql in [
        "do $$ begin for nth in 1..200 loop \
           insert into outbox.message (id, topic, key, payload, correlation_id, causation_id, traceparent, idempotency_key) \
             select md5(n.i::text)::uuid, 'orders', 'account-' || n.i % 1000, '\\x0102', 'req-' || n.i / 10, md5((n.i - 1)::text)::uuid::text, \
               '00-' || md5((n.i / 10)::text) || '-00f067aa0ba902b7-01', 'once-' || n.i \
             from (select nth * 1000 + j as i from generate_series(1, 1000) j) n; \
           commit; end loop; end $$",
        "update outbox.cursor set high = (select max(seq) from outbox.message), seen = pg_current_snapshot(), epoch = 1000, relay = 'r'",
        "insert into outbox.receipt (epoch, out_of_order, cursor_before, cursor_after, seq_first, seq_last, messages, receipts, settled_at, replay)
         select 1, apart, '1@1:1:', '1@1:1:', s, s + 9, 10, '\\x010000', now() - interval '1 day', case when apart then 1 end
         from generate_series(1, 200000, 10) s cross join (values (false), (true)) as a (apart)",
        "insert into outbox.held (seq, id, topic, key_hash, state, reason)
         select seq, id, topic, hashtext(key), 'parked', 'too_large' from outbox.message where seq % 20 = 0",
        "insert into outbox.hold_history (seq, id, topic, state, reason, attempts, failures, held_at)
         select seq, id, topic, 'retry', 'unknown_error', 1, '[]', now() from outbox.message where seq % 2 = 0",
        "insert into outbox.held_action (kind, id, seq, topic, reason_held, who, why)
         select 'retry', id, seq, topic, 'too_large', 'ada', 'again' from outbox.message where seq % 2 = 0",
        "insert into outbox.rewind (epoch, reason, seq_first, seq_last, messages)
         select 1, 'outage', s, s + 5, 6 from generate_series(1, 200000, 4) s",
        "insert into outbox.term (epoch, relay, high) select e, 'r', e from generate_series(1, 1000) e",
        "insert into outbox.scheduled (seq, id, topic, due_at) select seq, id, topic, now() + interval '1 day' from outbox.message where seq % 4 = 1",
        "insert into outbox.cancelled (id, who, why) select id, 'app', 'withdrawn' from outbox.message where seq % 8 = 1",
        "analyze",
    ] {
        run(connection, sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    }
}

/// Blocks that were touched, and every walk over what may be large.
async fn explained(connection: &mut PgConnection, execute: &str) -> (i64, Vec<String>, String) {
    let sql = format!("explain (analyze, buffers, timing off, format json) execute {execute}");
    let rows = sqlx::raw_sql(AssertSqlSafe(sql)).fetch_all(&mut *connection).await.unwrap();
    let json: serde_json::Value = rows[0].get(0);
    let plan = &json[0]["Plan"];
    let blocks = plan["Shared Hit Blocks"].as_i64().unwrap() + plan["Shared Read Blocks"].as_i64().unwrap();
    let mut walks = Vec::new();
    let mut nodes = vec![plan];
    while let Some(node) = nodes.pop() {
        nodes.extend(node["Plans"].as_array().into_iter().flatten());
        if node["Node Type"] == "Seq Scan" && LARGE.iter().any(|table| node["Relation Name"] == *table) {
            walks.push(node["Relation Name"].to_string());
        }
    }
    (blocks, walks, serde_json::to_string_pretty(&json).unwrap())
}

#[tokio::test]
async fn a_trace_touches_what_it_shows_and_nothing_else_whatever_is_retained() {
    let database = installed().await;
    let mut connection = database.connect().await;
    // In one statement they are built in one transaction, which `concurrently` does not allow.
    run(&mut connection, &INDEXES.replace("concurrently ", "")).await.unwrap();
    fill(&mut connection).await;
    // As the operator's session sets it; the other settings do not change a plan.
    run(&mut connection, "set search_path = ''; set max_parallel_workers_per_gather = 0; set jit = off")
        .await
        .unwrap();
    for (name, types, sql) in trace_statements(&SchemaName::default()) {
        run(&mut connection, &format!("prepare {name} ({types}) as {}", sql.as_str())).await.unwrap();
    }
    let xid = text(&mut connection, "select xid from outbox.message where seq = 100000").await.unwrap();
    let list = |numbers: Vec<i64>| {
        let numbers: Vec<String> = numbers.iter().map(i64::to_string).collect();
        format!("'{{{}}}'", numbers.join(","))
    };
    let some = list((100_001..=100_000 + SHOWN).collect());
    let spread = list((1..=SHOWN).map(|n| n * 2_000).collect());
    let ids = "select string_agg(id::text, ',') from outbox.message where seq between 100001 and 100100";
    let ids = format!("'{{{}}}'", text(&mut connection, ids).await.unwrap());
    for execute in [
        "trace_standing(1)".to_owned(),
        format!("trace_by_id({ids}, {SHOWN})"),
        format!("trace_by_correlation('req-500', {SHOWN})"),
        format!("trace_by_causation({ids}, {SHOWN})"),
        format!("trace_by_trace(md5('500'), {SHOWN})"),
        format!("trace_by_idempotency('once-100000', {SHOWN})"),
        format!("trace_by_key('account-7', {SHOWN}, 'orders')"),
        format!("trace_by_key('account-7', {SHOWN}, null)"),
        format!("trace_by_xid('{xid}', {SHOWN})"),
        format!("trace_facts({some}, 10001)"),
        format!("trace_facts({spread}, 10001)"),
        format!("trace_receipts('{{100000}}', '{{100500}}', {RUN_SPAN})"),
        format!("trace_receipts({spread}, {spread}, {RUN_SPAN})"),
        format!("trace_contents({some})"),
    ] {
        let (blocks, walks, plan) = explained(&mut connection, &execute).await;
        assert!(walks.is_empty(), "walks {walks:?}: {execute}: {plan}");
        assert!(blocks <= BLOCKS_MAX, "touches {blocks} blocks: {execute}: {plan}");
    }
    // A cursor that stands still: the backlog is counted as far as it is said, and no further.
    run(&mut connection, "update outbox.cursor set high = 0").await.unwrap();
    let last = format!("array[{RETAINED}::bigint]");
    let (blocks, walks, plan) = explained(&mut connection, &format!("trace_facts({last}, 10001)")).await;
    assert!(walks.is_empty() && blocks <= BLOCKS_MAX, "{walks:?}, {blocks} blocks: {plan}");
}

#[tokio::test]
async fn without_its_indexes_a_trace_answers_and_says_that_it_walks() {
    let database = installed().await;
    let mut connection = database.connect().await;
    run(
        &mut connection,
        "insert into outbox.message (topic, key, payload, correlation_id)
         select 'orders', 'k', convert_to(repeat('x', 900), 'UTF8'), 'req-' || i from generate_series(1, 80000) i",
    )
    .await
    .unwrap();
    let setup = Setup::new(BINARY, &database.url(), &shared::kafka());
    let asked = setup.run(&["trace", "req-70000", "--output", "json"]).await;
    let said = String::from_utf8_lossy(&asked.stderr).into_owned();
    assert!(
        said.contains("no index on correlation id: walking over") && said.contains("migrate trace-indexes"),
        "{said}"
    );
    let answer: serde_json::Value = serde_json::from_slice(&asked.stdout).unwrap();
    assert_eq!(answer["messages"][0]["correlation_id"], "req-70000");
    assert!(answer["notes"].to_string().contains("what it caused was not looked for"), "{answer:#}");

    run(&mut connection, &INDEXES.replace("concurrently ", "")).await.unwrap();
    let asked = setup.run(&["trace", "req-70000", "--output", "json"]).await;
    assert!(asked.stderr.is_empty(), "{}", String::from_utf8_lossy(&asked.stderr));
    let answer: serde_json::Value = serde_json::from_slice(&asked.stdout).unwrap();
    assert_eq!(
        (answer["messages"].as_array().unwrap().len(), answer["notes"].to_string()),
        (1, "[]".to_owned())
    );
}
