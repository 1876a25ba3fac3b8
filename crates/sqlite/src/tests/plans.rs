//! How SQLite runs the statements that are run often: none of them may walk a table from its beginning.

use sqlx::Row;

use super::*;

/// The plan, a line a step. Parameters stay unbound: SQLite's plan does not depend on them.
async fn plan(shop: &Shop, sql: &str) -> String {
    let rows = sqlx::query(AssertSqlSafe(format!("explain query plan {}", without_comments(sql))))
        .fetch_all(&mut shop.application().await)
        .await
        .unwrap();
    rows.iter().map(|row| row.get::<String, _>("detail")).collect::<Vec<_>>().join("\n")
}

fn without_comments(sql: &str) -> String {
    sql.lines().filter(|line| !line.trim_start().starts_with("--")).collect::<Vec<_>>().join("\n")
}

#[tokio::test]
async fn a_page_walks_the_primary_key_from_the_cursor_on() {
    let shop = Shop::open().await;
    let plan = plan(&shop, include_str!("../sql/page.sql")).await;
    assert!(plan.contains("SEARCH outbox_message USING INTEGER PRIMARY KEY (rowid>?)"), "{plan}");
    assert!(plan.contains("SEARCH m USING INTEGER PRIMARY KEY (rowid>? AND rowid<?)"), "{plan}");
}

#[tokio::test]
async fn looking_at_held_messages_walks_indexes_step_by_step() {
    let shop = Shop::open().await;
    let signal = plan(&shop, include_str!("../sql/held_signal.sql")).await;
    assert!(signal.contains("USING INDEX outbox_held_due (topic>?)"), "{signal}");
    assert!(signal.contains("USING INDEX outbox_held_due (topic=? AND due_at<?)"), "{signal}");
    let unblocked = plan(&shop, include_str!("../sql/held_unblocked.sql")).await;
    assert!(unblocked.contains("INDEX outbox_held_behind (key_hash>?)"), "{unblocked}");
    assert!(unblocked.contains("USING COVERING INDEX outbox_held_key_hash_seq (key_hash=?)"), "{unblocked}");
    let due = plan(&shop, include_str!("../sql/held_due.sql")).await;
    assert!(
        due.contains("SEARCH earlier USING INDEX outbox_held_key_hash_seq (key_hash=? AND seq<?)"),
        "{due}"
    );
    assert!(never_walks_intents(&due), "{due}");
}

#[tokio::test]
async fn nothing_that_is_asked_often_walks_all_intents() {
    let shop = Shop::open().await;
    for sql in [
        include_str!("../sql/page.sql"),
        include_str!("../sql/backlog.sql"),
        include_str!("../sql/held_list.sql"),
        include_str!("../sql/held_find.sql"),
        include_str!("../sql/message_id.sql"),
        include_str!("../sql/sequence.sql"),
    ] {
        let plan = plan(&shop, sql).await;
        assert!(never_walks_intents(&plan), "{sql}\n{plan}");
    }
}

fn never_walks_intents(plan: &str) -> bool {
    !plan.lines().any(|line| matches!(line.trim(), "SCAN outbox_message" | "SCAN m"))
}

#[tokio::test]
async fn purge_starts_at_the_oldest_and_stops_after_its_step() {
    let shop = Shop::open().await;
    let plan = plan(&shop, include_str!("../sql/purge_messages.sql")).await;
    assert!(plan.contains("SEARCH m USING INTEGER PRIMARY KEY (rowid<?)"), "{plan}");
    assert!(plan.contains("SEARCH outbox_message USING INTEGER PRIMARY KEY (rowid=?)"), "{plan}");
}

#[tokio::test]
async fn a_trace_finds_by_its_indexes_and_reads_what_is_known_by_keys() {
    let shop = Shop::open().await;
    shop.run(include_str!("../../../../migrations/trace-indexes/sqlite.sql")).await;
    for (sql, index) in [
        (include_str!("../sql/trace_by_id.sql"), "outbox_message_id (id=?)"),
        (include_str!("../sql/trace_by_correlation.sql"), "outbox_message_correlation (correlation_id=?)"),
        (include_str!("../sql/trace_by_causation.sql"), "outbox_message_causation (causation_id=?)"),
        (include_str!("../sql/trace_by_trace.sql"), "outbox_message_trace (<expr>=?)"),
        (
            include_str!("../sql/trace_by_idempotency.sql"),
            "outbox_message_idempotency_key (idempotency_key=?)",
        ),
        (include_str!("../sql/trace_by_key.sql"), "outbox_message_key (key=?)"),
    ] {
        let plan = plan(&shop, sql).await;
        assert!(plan.contains(index), "{sql}\n{plan}");
        assert!(never_walks_intents(&plan), "{sql}\n{plan}");
    }
    for sql in [
        include_str!("../sql/trace_intents.sql"),
        include_str!("../sql/trace_facts.sql"),
        include_str!("../sql/trace_contents.sql"),
        include_str!("../sql/trace_standing.sql"),
    ] {
        let plan = plan(&shop, sql).await;
        let walks = |table: &str| plan.lines().any(|line| line.trim() == format!("SCAN {table}"));
        // Aliases of these statements: messages, held ones and those that were, actions, scheduled and cancelled ones.
        assert!(!["m", "h", "f", "w", "o", "s", "outbox_receipt"].into_iter().any(walks), "{sql}\n{plan}");
    }
}
