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
