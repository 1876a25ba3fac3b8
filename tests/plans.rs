//! The statements of the data path over a million retained messages: every access by index, and no more of the table touched
//! than the page holds, whatever the statistics say.
//!
//! The relay plans each statement once per session, perhaps while the table is empty and never analysed. So the statements are
//! prepared on an empty table, the table is filled behind their back, and they are explained as they are executed.

use outboxd_engine::{Outbox, Upkeep};
use outboxd_postgres::migrate::TraceIndexes;
use outboxd_postgres::sql::{Statements, reading_settings};
use outboxd_postgres::{PostgresConfig, PostgresOutbox, SchemaName};
use outboxd_testkit::postgres::Database;
use sqlx::{AssertSqlSafe, PgConnection, Row};

use crate::migrations::{installed, migrator, run, text};

const RETAINED: i64 = 1_000_000;
const BULK: i64 = 100_000;
const PAGE: i64 = 1_000;
/// Late messages of a page and one more; or those that a release looks at.
const SORTED_MAX: i64 = 4 * PAGE;

/// Names of the statements as they are prepared, with the types of their parameters.
fn statements() -> Vec<(&'static str, &'static str, String)> {
    let statements = Statements::new(&SchemaName::default());
    let sql = |statement: &sqlx::SqlStr| statement.as_str().to_owned();
    vec![
        ("page", "text, bigint, bigint, text, text, bigint, bigint", sql(&statements.read_page)),
        ("backlog", "bigint", sql(&statements.backlog)),
        ("purge", "bigint, bigint, bigint", sql(&statements.purge_messages)),
        ("sweep", "bigint, bigint, bigint, uuid, bigint", sql(&statements.sweep_window)),
        ("suspects", "bigint[], text, bigint, text, timestamptz", sql(&statements.sweep_suspects)),
        ("signal", "text[]", sql(&statements.held_signal)),
        ("start", "bigint, uuid", sql(&statements.lead_start)),
        ("counts", "bigint, bigint", sql(&statements.held_counts)),
        ("reasons", "bigint, bigint", sql(&statements.backlog_held)),
        ("unblocked", "bigint[], text[]", sql(&statements.held_unblocked)),
        ("due", "text[], bigint[], bigint, bigint, bigint", sql(&statements.held_due)),
        ("demote", "text[], bigint", sql(&statements.held_demote)),
        ("promote", "bigint, uuid, bigint", sql(&statements.scheduled_promote)),
        ("landings", "bigint[], bigint[], bigint", sql(&statements.operate_receipts)),
        ("fingerprints", "bigint, bigint, bigint", sql(&statements.verify_next)),
        ("fingerprints_at", "bigint[]", sql(&statements.verify_at)),
        ("chunk", "bigint, uuid, bigint, bigint, bigint, bigint, bigint", sql(&statements.replay_chunk)),
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
    run(connection, "execute sweep(null, 10, null, null, 10)").await.unwrap();
    run(connection, "execute suspects('{}', '1:1:', null, null, null)").await.unwrap();
    run(connection, "execute signal('{}')").await.unwrap();
    run(connection, "execute start(1, gen_random_uuid())").await.unwrap();
    run(connection, "execute counts(0, 10)").await.unwrap();
    run(connection, "execute reasons(0, 10)").await.unwrap();
    run(connection, "execute unblocked('{}', '{}')").await.unwrap();
    run(connection, "execute due('{}', '{}', 10, 10, 10)").await.unwrap();
    run(connection, "execute demote('{}', 10)").await.unwrap();
    run(connection, "execute promote(1, gen_random_uuid(), 10)").await.unwrap();
    run(connection, "execute landings('{1}', '{10}', 10)").await.unwrap();
    run(connection, "execute fingerprints(1, 10, 10)").await.unwrap();
    run(connection, "execute fingerprints_at('{1}')").await.unwrap();
    run(connection, "execute chunk(1, gen_random_uuid(), null, null, 10, 10, 10)").await.unwrap();
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
        if ["message", "held", "receipt"].iter().any(|table| node["Relation Name"] == *table)
            && kind != "ModifyTable"
        {
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
        self.assert_bounded_sorting(what, blocks_max, SORTED_MAX);
    }

    fn assert_bounded_sorting(&self, what: &str, blocks_max: i64, sorted_max: i64) {
        for scan in &self.scans {
            let by_index = ["Index Scan ", "Index Only Scan "].iter().any(|good| scan.starts_with(good));
            assert!(by_index, "{what}: {scan} in {}", self.plan);
        }
        assert!(self.sorted_max <= sorted_max, "{what}: sorts {} rows in {}", self.sorted_max, self.plan);
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
    // Indexes that end with seq as well: none of the relay's statements takes one for its own.
    migrator(&database.url(), "outbox").change_trace_indexes(TraceIndexes::Wanted, |_, _| ()).await.unwrap();
    run(&mut connection, "analyze outbox.message").await.unwrap();
    every_statement_is_bounded(&mut connection, &database, "planned once, beside the indexes of trace").await;
    every_statement_is_bounded(&mut custom, &database, "planned with values, beside the indexes of trace")
        .await;
}

/// A turn reads what belongs to its window: wherever that lies, whatever was never vacuumed, however many receipts there are, and
/// however large the gap between two messages is.
#[tokio::test]
async fn a_turn_of_the_sweep_over_a_million_messages_touches_its_window_alone() {
    const SPAN: i64 = outboxd_core::receipts::RUN_SPAN;
    let database = installed().await;
    let mut connection = database.connect().await;
    run(&mut connection, "alter table outbox.message set (autovacuum_enabled = off)").await.unwrap();
    run(&mut connection, "alter table outbox.receipt set (autovacuum_enabled = off)").await.unwrap();
    prepare(&mut connection, &database.url(), "force_generic_plan").await;
    fill(&mut connection).await;
    run(
        &mut connection,
        &format!(
            "update outbox.cursor set high = {RETAINED}, seen = pg_current_snapshot();
             insert into outbox.receipt
               (epoch, out_of_order, cursor_before, cursor_after, seq_first, seq_last, messages, receipts)
             select 1, late, '', '', i, i + case when late then {SPAN} - 1 else 9 end, 1, '\\x010000'
             from generate_series(1, {RETAINED}, 10) i, (values (true), (false)) as l (late);
             insert into outbox.held (seq, id, topic, key_hash, state, reason)
               select i, gen_random_uuid(), 'orders', i, 'parked', 'too_large' from generate_series(1, {RETAINED}, 50) i;
             delete from outbox.message where seq > 100 and seq <= 400000"
        ),
    )
    .await
    .unwrap();
    for vacuumed in [false, true] {
        if vacuumed {
            run(&mut connection, "vacuum analyze outbox.message, outbox.receipt, outbox.held").await.unwrap();
        }
        for from in [0, 400_000, 500_000, RETAINED - 10, RETAINED] {
            let what = format!("a turn from {from}, vacuumed: {vacuumed}");
            let turn = explain(&mut connection, &format!("sweep({from}, {PAGE}, null, null, {SPAN})")).await;
            assert_eq!(turn.rows, 1, "{what}");
            // What was deleted and not vacuumed is walked over once.
            let gap = if from == 0 && !vacuumed { 12_000 } else { 0 };
            turn.assert_bounded_sorting(&what, 2 * BLOCKS_OF_A_PAGE + gap, PAGE + SPAN);
        }
        for first in [1, 400_000, 500_000, RETAINED - PAGE] {
            let last = first + PAGE;
            let what = format!("a proof from {first}, vacuumed: {vacuumed}");
            let landings =
                explain(&mut connection, &format!("landings('{{{first}}}', '{{{last}}}', {SPAN})")).await;
            landings.assert_bounded_sorting(&what, 2 * BLOCKS_OF_A_PAGE, PAGE + SPAN);
            let prints = explain(&mut connection, &format!("fingerprints({first}, {last}, {PAGE})")).await;
            // Each asks once whether an operator has edited it.
            prints.assert_bounded(&what, 8 * PAGE);
            let at = format!("fingerprints_at(array[{first}, {last}, {RETAINED}]::bigint[])");
            explain(&mut connection, &at).await.assert_bounded(&what, 2 * BLOCKS_OF_NOTHING);
        }
        let now = text(&mut connection, "select pg_current_snapshot()").await.unwrap();
        let seqs: Vec<String> = (500_001..=500_000 + PAGE).map(|seq| seq.to_string()).collect();
        let suspects = format!("suspects('{{{}}}', '{now}', null, null, null)", seqs.join(","));
        let suspects = explain(&mut connection, &suspects).await;
        assert_eq!(suspects.rows, PAGE);
        // Each is looked up by its key, and once in the audit.
        suspects.assert_bounded("suspects", 8 * PAGE);
    }
}

/// Held messages: one key of 100,000 followers behind a parked head, a topic that cannot be written to with 20,000 more.
async fn hold_many(connection: &mut PgConnection) {
    run(
        connection,
        "insert into outbox.message (topic, key, payload) select 't', 'k', '' from generate_series(1, 120000);
         insert into outbox.held (seq, id, topic, key_hash, state, reason)
           select i, gen_random_uuid(), 't', 7, case i when 1 then 'parked' else 'behind' end, 'behind'
           from generate_series(1, 100000) i;
         insert into outbox.held (seq, id, topic, key_hash, state, reason)
           select i, gen_random_uuid(), 'gone', i % 1000 + 1000, 'topic', 'topic_unknown'
           from generate_series(100001, 120000) i",
    )
    .await
    .unwrap();
}

#[tokio::test]
async fn a_hundred_thousand_held_messages_cost_no_more_than_what_is_released() {
    for statistics in ["select", "analyze outbox.held", "analyze"] {
        a_hundred_thousand_held_messages(statistics).await;
    }
}

async fn a_hundred_thousand_held_messages(statistics: &str) {
    let database = installed().await;
    let mut connection = database.connect().await;
    run(&mut connection, "alter table outbox.held set (autovacuum_enabled = off)").await.unwrap();
    prepare(&mut connection, &database.url(), "force_generic_plan").await;
    hold_many(&mut connection).await;
    run(&mut connection, statistics).await.unwrap();
    let connection = &mut connection;
    // Each message that is looked at takes a probe of some blocks, each that is released some more.
    let probes = 10 * SORTED_MAX;

    // While nothing can go.
    let signal = explain(connection, "signal('{gone}')").await;
    signal.assert_bounded("held signal", BLOCKS_OF_NOTHING);
    let suspects = explain(connection, "unblocked('{7,1000,1001,1002,1003}', '{gone}')").await;
    suspects.assert_bounded("unblocked", 2 * BLOCKS_OF_NOTHING);
    assert_eq!(suspects.rows, 0);

    // The topic comes back: its messages go in their order.
    let due = explain(connection, &format!("due('{{}}', '{{}}', {PAGE}, 1000000, 4000)")).await;
    assert_eq!(due.rows, PAGE);
    // All that is held before them is walked over once.
    due.assert_bounded("due, the topic is back", probes);

    // A head of that topic is parked: what waits behind it is due no longer, its key is.
    let park = "update outbox.held set state = 'parked' where seq between 100001 and 101000";
    run(connection, park).await.unwrap();
    let due = explain(connection, &format!("due('{{}}', '{{}}', {PAGE}, 1000000, 4000)")).await;
    assert_eq!(due.rows, 0);
    due.assert_bounded("due, all of it blocked", probes);
    run(connection, "execute demote('{}', 20000)").await.unwrap();
    let states = "select string_agg(s, ', ' order by s) from \
         (select state || ' ' || count(*) as s from outbox.held where topic = 'gone' group by state) x";
    assert_eq!(text(connection, states).await.unwrap(), "behind 19000, parked 1000");
    assert_eq!(explain(connection, "signal('{}')").await.rows, 1);

    // The head of the long key is gone: its followers go, a page at a time.
    run(connection, "delete from outbox.held where seq = 1").await.unwrap();
    let unblocked = explain(connection, "unblocked('{7}', '{gone}')").await;
    assert_eq!(unblocked.rows, 1);
    let due = explain(connection, &format!("due('{{}}', '{{7}}', {PAGE}, 1000000, 4000)")).await;
    assert_eq!(due.rows, PAGE);
    due.assert_bounded("due, a key unblocked", probes);
}

/// A million that wait are one probe; those whose time has come are what is paid for.
#[tokio::test]
async fn a_million_scheduled_messages_cost_the_live_path_nothing() {
    let database = installed().await;
    let mut connection = database.connect().await;
    run(&mut connection, "alter table outbox.scheduled set (autovacuum_enabled = off)").await.unwrap();
    prepare(&mut connection, &database.url(), "force_generic_plan").await;
    let connection = &mut connection;
    run(
        connection,
        &format!(
            "update outbox.cursor set epoch = 1, nonce = '00000000-0000-0000-0000-000000000001';
             insert into outbox.message (topic, key, payload, deliver_after)
               select 'later', i, '', now() + interval '1 day' from generate_series(1, {PAGE}) i;
             insert into outbox.scheduled (seq, id, topic, key_hash, due_at)
               select seq, id, topic, seq, now() + interval '1 day' from outbox.message;
             insert into outbox.scheduled (seq, id, topic, key_hash, due_at)
               select {PAGE} + i, gen_random_uuid(), 'later', i, now() + interval '2 days' from generate_series(1, {RETAINED}) i"
        ),
    )
    .await
    .unwrap();
    let promote = format!("promote(1, '00000000-0000-0000-0000-000000000001', {PAGE})");
    explain(connection, "signal('{}')").await.assert_bounded("signal, all of them wait", BLOCKS_OF_NOTHING);
    explain(connection, &promote).await.assert_bounded("promote, all of them wait", BLOCKS_OF_NOTHING);
    let backlog = explain(connection, "backlog(10000)").await;
    // Counted up to 10,000, in an index.
    backlog.assert_bounded("backlog, all of them wait", 10_000);
    run(connection, &format!("update outbox.scheduled set due_at = now() where seq <= {PAGE}"))
        .await
        .unwrap();
    let due = explain(connection, &promote).await;
    due.assert_bounded("promote a page", 30 * PAGE);
    let held = "select count(*) || ' ' || min(state) || ' ' || max(reason) from outbox.held";
    assert_eq!(text(connection, held).await.unwrap(), format!("{PAGE} retry scheduled"));
}

/// What an open transaction has inserted is invisible, and a page that looks at it all the same walks all of it each time.
#[tokio::test]
async fn a_bulk_transaction_that_is_open_and_overtaken_costs_a_page_nothing() {
    let database = installed().await;
    let mut connection = database.connect().await;
    prepare(&mut connection, &database.url(), "force_generic_plan").await;
    let one = "insert into outbox.message (topic, key, payload) values ('orders', 'k', '')";
    let mut writer = database.connect().await;
    let bulk = format!(
        "begin; insert into outbox.message (topic, key, payload) select 'orders', 'k', '' from generate_series(1, {BULK})"
    );
    run(&mut writer, &bulk).await.unwrap();
    run(&mut connection, one).await.unwrap();
    let high = text(&mut connection, "select max(seq) from outbox.message").await.unwrap();
    let seen = text(&mut connection, "select pg_current_snapshot()").await.unwrap();
    let bound = text(&mut connection, "select pg_snapshot_xmax(pg_current_snapshot())").await.unwrap();
    let page = format!("page('{seen}', {high}, -1, null, '{bound}', {PAGE}, 1000000)");
    let open = explain(&mut connection, &page).await;
    assert_eq!(open.rows, 1, "nothing is visible yet");
    open.assert_bounded("a bulk transaction that is open", BLOCKS_OF_NOTHING);
    run(&mut writer, "commit").await.unwrap();
    let committed = explain(&mut connection, &page).await;
    assert_eq!(committed.rows, PAGE + 1, "and then it comes in pages");
}

/// Held messages of distinct keys, of a topic that is missing for a day.
const HELD: i64 = 1_000_000;
/// Of them, those that one statement walks over.
const WALKED: i64 = 50_000;

async fn hold_a_million(connection: &mut PgConnection) {
    run(
        connection,
        &format!(
            "insert into outbox.message (topic, key, payload) select 'gone', i, '' from generate_series(1, 5) i;
             insert into outbox.held (seq, id, topic, key_hash, state, reason)
               select i, gen_random_uuid(), 'gone', hashint8extended(i, 0), 'topic', 'topic_unknown'
               from generate_series(6, {HELD}) i;
             insert into outbox.held (seq, id, topic, key_hash, state, reason, attempts, due_at)
               select {HELD} + i, gen_random_uuid(), 'other', 5000 + i, 'retry', 'unknown_error', 1, now()
               from generate_series(1, 3) i;
             insert into outbox.message (topic, key, payload, seq) overriding system value
               select 'other', 'k', '', {HELD} + i from generate_series(1, 3) i"
        ),
    )
    .await
    .unwrap();
}

#[tokio::test]
async fn a_million_held_messages_of_distinct_keys_are_never_walked_by_one_statement() {
    let database = installed().await;
    let mut connection = database.connect().await;
    run(&mut connection, "alter table outbox.held set (autovacuum_enabled = off)").await.unwrap();
    prepare(&mut connection, &database.url(), "force_generic_plan").await;
    hold_a_million(&mut connection).await;
    run(
        &mut connection,
        "update outbox.cursor set epoch = 1, nonce = '00000000-0000-0000-0000-000000000001'",
    )
    .await
    .unwrap();
    for what in ["never analysed", "analysed"] {
        let connection = &mut connection;
        let start = explain(connection, "start(1, '00000000-0000-0000-0000-000000000001')").await;
        assert_eq!(start.rows, 1);
        start.assert_bounded(&format!("start, {what}"), BLOCKS_OF_NOTHING);
        // A page of the counts lies in a thousand blocks or so; hashes in their order would lead to a block each.
        for from in [0, HELD / 2] {
            let counts = explain(connection, &format!("counts({from}, {WALKED})")).await;
            counts.assert_bounded(&format!("counts from {from}, {what}"), 2_000);
            let reasons = explain(connection, &format!("reasons({from}, {WALKED})")).await;
            reasons.assert_bounded(&format!("reasons from {from}, {what}"), 2_000);
        }
        let signal = explain(connection, "signal('{gone}')").await;
        signal.assert_bounded(&format!("signal, {what}"), 3 * BLOCKS_OF_NOTHING);
        // Messages of another topic are due, and behind all the others in the table.
        let due = explain(connection, &format!("due('{{gone}}', '{{}}', {PAGE}, 1000000, 4000)")).await;
        assert_eq!(due.rows, 3, "{what}: {}", due.plan);
        due.assert_bounded(&format!("due, {what}"), 5 * BLOCKS_OF_NOTHING);
        let demote = explain(connection, "demote('{gone}', 20000)").await;
        demote.assert_bounded(&format!("demote, {what}"), 5 * BLOCKS_OF_NOTHING);
        run(connection, "analyze outbox.held").await.unwrap();
        // A statement that is planned anew is planned with these statistics.
        run(connection, "discard plans").await.unwrap();
    }
    // All pages together count every message once.
    let config = PostgresConfig::from_url(&database.url(), SchemaName::default(), "plans").unwrap();
    let relay = PostgresOutbox::new(config);
    run(&mut connection, "select setval('outbox.message_seq_seq', max(seq)) from outbox.message")
        .await
        .unwrap();
    let term = relay.lead().await.unwrap().expect("nobody else leads");
    let start = relay.start(term).await.unwrap();
    let messages: i64 = start.held.iter().map(|count| i64::from(count.messages)).sum();
    assert_eq!(messages, HELD - 5 + 3);
    let held = relay.backlog().await.unwrap().held;
    let expected = [("retry", "unknown_error", 3), ("topic", "topic_unknown", HELD.unsigned_abs() - 5)];
    assert_eq!(held, expected.map(|(state, reason, messages)| (state.into(), reason.into(), messages)));
    relay.step_down().await;
}

/// A topic whose messages are all blocked keeps no other topic from being released, and is put behind though others have more.
#[tokio::test]
async fn blocked_messages_of_one_topic_keep_no_other_topic_waiting() {
    let database = installed().await;
    let mut connection = database.connect().await;
    prepare(&mut connection, &database.url(), "force_generic_plan").await;
    run(
        &mut connection,
        "insert into outbox.message (topic, key, payload) select 'z', 'k', '' from generate_series(1, 5001);
         insert into outbox.message (topic, payload) select 'a', '' from generate_series(1, 25000);
         insert into outbox.held (seq, id, topic, key_hash, state, reason)
           select m.seq, m.id, m.topic, case m.topic when 'z' then 7 end,
             case m.seq when 1 then 'parked' else 'topic' end, 'topic_unknown'
           from outbox.message m",
    )
    .await
    .unwrap();
    run(&mut connection, "analyze").await.unwrap();
    let connection = &mut connection;
    let due = explain(connection, &format!("due('{{}}', '{{}}', {PAGE}, 1000000, 4000)")).await;
    assert_eq!(due.rows, PAGE, "of the topic that nothing blocks");
    due.assert_bounded("due beside a blocked topic", 10 * SORTED_MAX);
    run(connection, "execute demote('{}', 20000)").await.unwrap();
    let waiting = "select count(*) from outbox.held where topic = 'z' and state = 'topic'";
    assert_eq!(text(connection, waiting).await.unwrap(), "0");
}

/// However many topics come back at once, a round looks at about as many messages.
#[tokio::test]
async fn many_topics_that_come_back_at_once_cost_a_round_no_more_than_one() {
    let database = installed().await;
    let mut connection = database.connect().await;
    prepare(&mut connection, &database.url(), "force_generic_plan").await;
    run(
        &mut connection,
        "insert into outbox.message (topic, payload) select 't' || i % 400, '' from generate_series(1, 80000) i;
         insert into outbox.held (seq, id, topic, state, reason)
           select m.seq, m.id, m.topic, 'topic', 'topic_unauthorized' from outbox.message m",
    )
    .await
    .unwrap();
    run(&mut connection, "analyze").await.unwrap();
    let due = explain(&mut connection, &format!("due('{{}}', '{{}}', {PAGE}, 1000000, 4000)")).await;
    assert_eq!(due.rows, PAGE);
    due.assert_bounded("due, 400 topics", 10 * SORTED_MAX);
}

/// Wherever a replay stands, however little meets its conditions, and however much is held: a question reads its window, and what is
/// known of those that are meant.
#[tokio::test]
async fn a_chunk_of_a_replay_over_a_million_messages_touches_its_window_alone() {
    let database = installed().await;
    let mut connection = database.connect().await;
    run(&mut connection, "alter table outbox.message set (autovacuum_enabled = off)").await.unwrap();
    prepare(&mut connection, &database.url(), "force_generic_plan").await;
    fill(&mut connection).await;
    let nonce = "00000000-0000-0000-0000-000000000001";
    run(
        &mut connection,
        &format!(
            "update outbox.cursor set high = {RETAINED}, seen = pg_current_snapshot(), epoch = 1, nonce = '{nonce}';
             insert into outbox.held (seq, id, topic, key_hash, state, reason)
               select seq, id, topic, seq, 'parked', 'too_large' from outbox.message where seq % 10 = 0;
             insert into outbox.held_action (kind, id, seq, topic, reason_held, who, why)
               select 'discard', id, seq, topic, 'too_large', 'ops', 'test' from outbox.message where seq % 10 = 1;
             insert into outbox.replay (who, why, topic, seqs, seq_first, seq_last, total, pos, state)
               values ('ops', 'test', 'orders', null, 1, {RETAINED}, 0, {RETAINED} / 2, 'running'),
                 ('ops', 'test', 'nowhere', null, 1, {RETAINED}, 0, 0, 'running'),
                 ('ops', 'test', null, array(select g from generate_series(1, {RETAINED}, 1000) g), 1, {RETAINED}, 1000, 0, 'running')"
        ),
    )
    .await
    .unwrap();
    for analysed in [false, true] {
        if analysed {
            run(&mut connection, "analyze").await.unwrap();
        }
        let chunk = async |connection: &mut PgConnection, replay: i64, from: i64| {
            let execute = format!("chunk(1, '{nonce}', {replay}, {from}, {PAGE}, {PAGE}, 100000000)");
            explain(connection, &execute).await
        };
        // A probe of three tables for each that is meant, and one of the message again: some blocks each.
        let dense = chunk(&mut connection, 1, RETAINED / 2).await;
        assert_eq!(dense.rows, PAGE * 8 / 10);
        dense.assert_bounded("all of them", 20 * PAGE);
        let nothing = chunk(&mut connection, 2, RETAINED / 3).await;
        assert_eq!(nothing.rows, 1);
        nothing.assert_bounded("none of them", BLOCKS_OF_A_PAGE);
        // Those that are named end in 1: an operator has discarded every one.
        let named = chunk(&mut connection, 3, 500_000).await;
        assert_eq!(named.rows, 1);
        named.assert_bounded("those that are named", 20 * PAGE);
    }
}
