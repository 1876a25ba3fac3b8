//! The statements of the data path over a million retained messages: every access by index, and no more of the table touched
//! than the page holds, whatever the statistics say.
//!
//! The relay plans each statement once per session, perhaps while the table is empty and never analysed. So the statements are
//! prepared on an empty table, the table is filled behind their back, and they are explained as they are executed.

use outboxd_postgres::sql::{Statements, reading_settings};
use outboxd_postgres::{PostgresConfig, SchemaName};
use outboxd_testkit::postgres::Database;
use sqlx::{AssertSqlSafe, PgConnection, Row};

use crate::migrations::{installed, run, text};

const RETAINED: i64 = 1_000_000;
const BULK: i64 = 100_000;
const PAGE: i64 = 1_000;

/// Names of the statements as they are prepared, with the types of their parameters.
fn statements() -> Vec<(&'static str, &'static str, String)> {
    let statements = Statements::new(&SchemaName::default());
    let sql = |statement: &sqlx::SqlStr| statement.as_str().to_owned();
    vec![
        ("page", "text, bigint, bigint, text, text, bigint, bigint", sql(&statements.read_page)),
        ("backlog", "bigint", sql(&statements.backlog)),
        ("purge", "bigint, bigint, bigint", sql(&statements.purge_messages)),
        ("signal", "text[]", sql(&statements.held_signal)),
        ("due", "text[], bigint[], bigint, bigint", sql(&statements.held_due)),
    ]
}

async fn prepare(connection: &mut PgConnection, url: &str, plan_cache_mode: &str) {
    let config = PostgresConfig::from_url(url, SchemaName::default(), "plans").unwrap();
    for (name, value) in reading_settings(&config) {
        // Filling the table takes longer than a page may; keepalives do not matter here.
        if !name.ends_with("_timeout") && name != "client_connection_check_interval" {
            run(connection, &format!("select set_config('{name}', '{value}', false)")).await.unwrap();
        }
    }
    run(connection, &format!("set plan_cache_mode = {plan_cache_mode}")).await.unwrap();
    for (name, types, sql) in statements() {
        run(connection, &format!("prepare {name} ({types}) as {sql}")).await.unwrap();
    }
    // Makes the generic plans, now.
    run(connection, "execute page('1:1:', 0, -1, null, '1', 10, 10)").await.unwrap();
    run(connection, "execute backlog(10)").await.unwrap();
    run(connection, "execute purge(0, 10, 0)").await.unwrap();
    run(connection, "execute signal('{}')").await.unwrap();
    run(connection, "execute due('{}', '{}', 10, 10)").await.unwrap();
}

/// A million messages of a hundred transactions.
async fn fill(connection: &mut PgConnection) {
    run(
        connection,
        &format!(
            "do $$ begin for nth in 1..100 loop \
               insert into outbox.message (topic, key, payload) \
                 select 'orders', 'order-' || i, '\\x0102' from generate_series(1, {}) i; \
               commit; end loop; end $$",
            RETAINED / 100
        ),
    )
    .await
    .unwrap();
}

/// What a statement did, from EXPLAIN ANALYZE.
#[derive(Debug)]
struct Explained {
    plan: String,
    blocks: i64,
    rows: i64,
    sorted_max: i64,
    scans: Vec<String>,
}

async fn explain(connection: &mut PgConnection, execute: &str) -> Explained {
    let sql = format!("explain (analyze, buffers, timing off, format json) execute {execute}");
    let rows = sqlx::raw_sql(AssertSqlSafe(sql)).fetch_all(&mut *connection).await.unwrap();
    let json: serde_json::Value = rows[0].get(0);
    let plan = &json[0]["Plan"];
    let count = |node: &serde_json::Value, name: &str| {
        let total = node[name].as_f64().unwrap_or(0.0) * node["Actual Loops"].as_f64().unwrap_or(1.0);
        format!("{total:.0}").parse::<i64>().unwrap()
    };
    let blocks = plan["Shared Hit Blocks"].as_i64().unwrap() + plan["Shared Read Blocks"].as_i64().unwrap();
    let mut explained = Explained {
        plan: serde_json::to_string_pretty(&json).unwrap(),
        blocks,
        rows: count(plan, "Actual Rows"),
        sorted_max: 0,
        scans: Vec::new(),
    };
    let mut nodes = vec![plan];
    while let Some(node) = nodes.pop() {
        nodes.extend(node["Plans"].as_array().into_iter().flatten());
        let kind = node["Node Type"].as_str().unwrap_or_default();
        if node["Relation Name"] == "message" && kind != "ModifyTable" {
            explained.scans.push(format!("{kind} {}", node["Index Name"].as_str().unwrap_or_default()));
        }
        if kind.contains("Sort") {
            for input in node["Plans"].as_array().into_iter().flatten() {
                explained.sorted_max = explained.sorted_max.max(count(input, "Actual Rows"));
            }
        }
    }
    explained
}

impl Explained {
    /// Index scans alone, a sort of no more than was asked for, and few blocks.
    fn assert_bounded(&self, what: &str, blocks_max: i64) {
        for scan in &self.scans {
            let by_index = ["Index Scan message_", "Index Only Scan message_"];
            assert!(by_index.iter().any(|good| scan.starts_with(good)), "{what}: {scan} in {}", self.plan);
        }
        assert!(self.sorted_max <= 2 * (PAGE + 1), "{what}: sorts {} rows in {}", self.sorted_max, self.plan);
        assert!(self.blocks <= blocks_max, "{what}: touches {} blocks in {}", self.blocks, self.plan);
    }
}

/// These messages are small: a page of a thousand lies in some twenty blocks. A statement that walks what was dispatched long
/// ago touches thousands.
const BLOCKS_OF_A_PAGE: i64 = 150;
const BLOCKS_OF_NOTHING: i64 = 20;

async fn every_statement_is_bounded(connection: &mut PgConnection, database: &Database, what: &str) {
    let high: i64 = text(connection, "select max(seq) from outbox.message").await.unwrap().parse().unwrap();
    let now = text(connection, "select pg_current_snapshot()").await.unwrap();
    let bound = text(connection, "select pg_snapshot_xmax(pg_current_snapshot())").await.unwrap();
    let page =
        async |connection: &mut PgConnection, seen: &str, high: i64, pos: i64, until: &str, bound: &str| {
            let execute = format!("page('{seen}', {high}, {pos}, {until}, '{bound}', {PAGE}, 100000000)");
            explain(connection, &execute).await
        };

    let empty = page(connection, &now, high, -1, "null", &bound).await;
    assert_eq!(empty.rows, 1, "{what}: an empty page");
    empty.assert_bounded(&format!("{what}: an empty page"), BLOCKS_OF_NOTHING);

    let middle = page(connection, &now, high / 2, -1, "null", &bound).await;
    assert_eq!(middle.rows, PAGE + 1, "{what}: a page of the rest");
    // Its size is summed up first, so each block is met twice.
    middle.assert_bounded(&format!("{what}: a page of the rest"), 2 * BLOCKS_OF_A_PAGE);

    for early in [true, false] {
        let what = format!(
            "{what}: a bulk transaction that was overtaken, xid {}",
            if early { "running" } else { "at xmax" }
        );
        let (seen, bound) = overtaken(connection, database, early).await;
        let high: i64 =
            text(connection, "select max(seq) from outbox.message").await.unwrap().parse().unwrap();
        let late = page(connection, &seen, high, -1, "null", &bound).await;
        assert_eq!(late.rows, PAGE + 1, "{what}");
        late.assert_bounded(&what, 2 * BLOCKS_OF_A_PAGE);
        let until = format!("'{}'", text(connection, "select pg_current_snapshot()").await.unwrap());
        for pos in [high - BULK / 2, high - 10] {
            let catch_up = page(connection, &seen, high, pos, &until, &bound).await;
            catch_up.assert_bounded(&format!("{what}, catch-up at {pos} of {high}"), 2 * BLOCKS_OF_A_PAGE);
        }
    }

    // The cursor row stands at 0: everything is backlog, and nothing may be purged.
    let backlog = explain(connection, &format!("backlog({PAGE})")).await;
    backlog.assert_bounded(&format!("{what}: backlog"), BLOCKS_OF_A_PAGE);
    run(connection, "begin").await.unwrap();
    run(connection, &format!("update outbox.cursor set high = {high}, seen = pg_current_snapshot()"))
        .await
        .unwrap();
    let purge = explain(connection, &format!("purge(0, {PAGE}, 0)")).await;
    run(connection, "rollback").await.unwrap();
    // Deleting a row dirties its heap block and looks it up by its key.
    purge.assert_bounded(&format!("{what}: purge"), 12 * PAGE);
    explain(connection, "signal('{}')")
        .await
        .assert_bounded(&format!("{what}: held signal"), BLOCKS_OF_NOTHING);
    explain(connection, &format!("due('{{}}', '{{}}', {PAGE}, 1000000)"))
        .await
        .assert_bounded(&format!("{what}: due"), BLOCKS_OF_NOTHING);
}

/// A bulk transaction commits after a later message did. Returns the snapshot in between and the bound that belongs to it. `early`:
/// the bulk transaction's xid is one that the snapshot lists as running; otherwise it is at the snapshot's xmax.
async fn overtaken(connection: &mut PgConnection, database: &Database, early: bool) -> (String, String) {
    let one = "insert into outbox.message (topic, key, payload) values ('orders', 'k', '')";
    let bulk = format!(
        "insert into outbox.message (topic, key, payload) select 'orders', 'k', '' from generate_series(1, {BULK})"
    );
    let (mut writer, mut other) = (database.connect().await, database.connect().await);
    if early {
        run(&mut writer, &format!("begin; {bulk}")).await.unwrap();
        run(&mut other, &format!("begin; {one}")).await.unwrap();
    } else {
        run(&mut other, "begin; select pg_current_xact_id()").await.unwrap();
        run(&mut writer, &format!("begin; {bulk}")).await.unwrap();
        run(&mut other, one).await.unwrap();
    }
    run(&mut other, "commit").await.unwrap();
    let seen = text(connection, "select pg_current_snapshot()").await.unwrap();
    run(&mut writer, "commit").await.unwrap();
    let bound = text(connection, "select pg_snapshot_xmax(pg_current_snapshot())").await.unwrap();
    (seen, bound)
}

#[tokio::test]
async fn a_page_over_a_million_retained_messages_is_read_by_index_alone() {
    let database = installed().await;
    let mut connection = database.connect().await;
    run(&mut connection, "alter table outbox.message set (autovacuum_enabled = off)").await.unwrap();
    prepare(&mut connection, &database.url(), "force_generic_plan").await;
    let mut custom = database.connect().await;
    prepare(&mut custom, &database.url(), "force_custom_plan").await;
    fill(&mut connection).await;
    every_statement_is_bounded(&mut connection, &database, "planned while empty").await;
    every_statement_is_bounded(&mut custom, &database, "planned with values, never analysed").await;
    run(&mut connection, "analyze outbox.message").await.unwrap();
    every_statement_is_bounded(&mut connection, &database, "planned once, analysed").await;
    every_statement_is_bounded(&mut custom, &database, "planned with values, analysed").await;
}
