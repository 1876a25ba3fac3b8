//! Idempotency keys: an emit that is repeated returns the first id and writes nothing.

use outboxd_testkit::postgres::Database;
use outboxd_testkit::relay::eventually;
use outboxd_testkit::shared;
use sqlx::{AssertSqlSafe, PgConnection};
use uuid::Uuid;

use crate::migrations::{installed, run};
use crate::support::{Place, SOON};

async fn emit(
    connection: &mut PgConnection,
    idempotency_key: &str,
    payload: &str,
) -> Result<Uuid, sqlx::Error> {
    sqlx::query_scalar(
        "select outbox.emit(topic => 'orders', key => 'k', payload => $1, idempotency_key => $2)",
    )
    .bind(payload)
    .bind(idempotency_key)
    .fetch_one(connection)
    .await
}

async fn intents(connection: &mut PgConnection) -> i64 {
    sqlx::query_scalar("select count(*) from outbox.message").fetch_one(connection).await.unwrap()
}

fn code(error: &sqlx::Error) -> String {
    error.as_database_error().and_then(|error| error.code()).unwrap_or_default().into_owned()
}

#[tokio::test]
async fn a_second_emit_returns_the_first_id_and_writes_nothing() {
    let database = installed().await;
    let mut connection = database.connect().await;
    let first = emit(&mut connection, "order-17", "one").await.unwrap();
    assert_eq!(emit(&mut connection, "order-17", "another payload").await.unwrap(), first);
    // Within one transaction too, and by each overload.
    run(&mut connection, "begin").await.unwrap();
    let second = emit(&mut connection, "order-18", "two").await.unwrap();
    for payload in ["'\\x00'::bytea", "'{}'::jsonb", "null::text"] {
        let again: Uuid = sqlx::query_scalar(AssertSqlSafe(format!(
            "select outbox.emit(topic => 'orders', key => 'k', payload => {payload}, idempotency_key => 'order-18')"
        )))
        .fetch_one(&mut connection)
        .await
        .unwrap();
        assert_eq!(again, second, "{payload}");
    }
    run(&mut connection, "commit").await.unwrap();
    assert_eq!(intents(&mut connection).await, 2);
    // Without a key nothing is ever the same.
    for _ in 0..2 {
        run(&mut connection, "select outbox.emit(topic => 'orders', payload => 'x')").await.unwrap();
    }
    assert_eq!(intents(&mut connection).await, 4);
}

#[tokio::test]
async fn a_plain_insert_that_repeats_a_key_fails_and_says_what_to_do() {
    let database = installed().await;
    let mut connection = database.connect().await;
    emit(&mut connection, "order-17", "one").await.unwrap();
    let insert =
        "insert into outbox.message (topic, payload, idempotency_key) values ('orders', 'secret', $1)";
    let error = sqlx::query(insert).bind("order-17").execute(&mut connection).await.unwrap_err();
    assert_eq!(code(&error), "23505", "{error}");
    assert!(
        error.to_string().contains("idempotency_key_is_taken_emit_returns_the_id_of_the_first"),
        "{error}"
    );
    assert!(!format!("{error:?}").contains("secret"), "the payload is not shown: {error:?}");
    for (key, says) in [(String::new(), "0 bytes long"), ("x".repeat(501), "501 bytes long")] {
        let error = sqlx::query(insert).bind(&key).execute(&mut connection).await.unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
    }
    sqlx::query(insert).bind("x".repeat(500)).execute(&mut connection).await.unwrap();
}

/// Two transactions, the second of which emits and waits while the first is open: the first id, the second's answer, and how many
/// intents there are then.
async fn two(isolation: &str, first_ends: &str) -> (Uuid, Result<Uuid, sqlx::Error>, i64) {
    let database = installed().await;
    let mut first = database.connect().await;
    let mut second = database.connect().await;
    let begin = format!("begin isolation level {isolation}");
    run(&mut first, &begin).await.unwrap();
    run(&mut second, &begin).await.unwrap();
    // Both have their snapshots.
    intents(&mut first).await;
    intents(&mut second).await;
    let id = emit(&mut first, "order-17", "one").await.unwrap();
    let pid: i32 = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut second).await.unwrap();
    let mut waiting = tokio::task::JoinSet::new();
    waiting.spawn(async move {
        let emitted = emit(&mut second, "order-17", "two").await;
        run(&mut second, if emitted.is_ok() { "commit" } else { "rollback" }).await.unwrap();
        emitted
    });
    let mut watcher = database.connect().await;
    eventually("the second waits for the first", SOON, async || {
        let waits: bool = sqlx::query_scalar("select cardinality(pg_blocking_pids($1)) > 0")
            .bind(pid)
            .fetch_one(&mut watcher)
            .await
            .unwrap();
        waits.then_some(())
    })
    .await;
    run(&mut first, first_ends).await.unwrap();
    let emitted = waiting.join_next().await.unwrap().unwrap();
    (id, emitted, intents(&mut watcher).await)
}

#[tokio::test]
async fn of_two_transactions_at_once_the_second_waits_and_gets_the_first_id() {
    let (first, second, intents) = two("read committed", "commit").await;
    assert_eq!((second.unwrap(), intents), (first, 1));
}

#[tokio::test]
async fn of_two_transactions_at_once_the_second_writes_if_the_first_rolls_back() {
    for isolation in ["read committed", "repeatable read", "serializable"] {
        let (first, second, intents) = two(isolation, "rollback").await;
        let second = second.unwrap_or_else(|error| panic!("{isolation}: {error}"));
        assert_ne!(second, first, "{isolation}");
        assert_eq!(intents, 1, "{isolation}");
    }
}

#[tokio::test]
async fn a_key_that_a_snapshot_cannot_see_is_a_serialization_failure_and_the_retry_gets_the_first_id() {
    for isolation in ["repeatable read", "serializable"] {
        let (_, second, intents) = two(isolation, "commit").await;
        let error = second.unwrap_err();
        assert_eq!(code(&error), "40001", "{isolation}: {error}");
        assert_eq!(intents, 1, "{isolation}");
    }
    // Also if the first was committed before the second one emits.
    let database = installed().await;
    let mut first = database.connect().await;
    let mut second = database.connect().await;
    run(&mut second, "begin isolation level repeatable read").await.unwrap();
    assert_eq!(intents(&mut second).await, 0);
    let id = emit(&mut first, "order-17", "one").await.unwrap();
    assert_eq!(code(&emit(&mut second, "order-17", "two").await.unwrap_err()), "40001");
    run(&mut second, "rollback").await.unwrap();
    run(&mut second, "begin isolation level repeatable read").await.unwrap();
    assert_eq!(emit(&mut second, "order-17", "two").await.unwrap(), id);
    run(&mut second, "commit").await.unwrap();
}

#[tokio::test]
async fn many_writers_of_few_keys_write_each_once_and_all_get_the_same_id() {
    let database = installed().await;
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..8_u32 {
        let mut connection = database.connect().await;
        writers.spawn(async move {
            let mut ids = Vec::new();
            for n in 0..50 {
                run(&mut connection, "begin").await.unwrap();
                let id = emit(&mut connection, &format!("order-{n}"), "x").await.unwrap();
                // Some give back what they took.
                let ends = if (writer + n) % 3 == 0 { "rollback" } else { "commit" };
                run(&mut connection, ends).await.unwrap();
                if ends == "commit" {
                    ids.push((n, id));
                }
            }
            ids
        });
    }
    let mut by_key = std::collections::BTreeMap::new();
    for ids in writers.join_all().await {
        for (n, id) in ids {
            assert_eq!(*by_key.entry(n).or_insert(id), id, "order-{n}");
        }
    }
    assert_eq!((by_key.len(), intents(&mut database.connect().await).await), (50, 50));
}

/// D1. While it is retained, and no longer; the relay publishes the one that was written.
#[tokio::test]
async fn a_key_is_free_again_once_its_intent_is_purged() {
    let database = Database::create().await;
    let place = Place::install(&database.url(), &shared::kafka(), "idempotent").await;
    let mut connection = database.connect().await;
    let emit = async |connection: &mut PgConnection| -> Uuid {
        sqlx::query_scalar(
            "select outbox.emit(topic => $1, key => 'k', payload => 'x', idempotency_key => 'once')",
        )
        .bind(&place.topic)
        .fetch_one(connection)
        .await
        .unwrap()
    };
    let first = emit(&mut connection).await;
    let mut relay = place.setup.start().await;
    relay.wait_until("it is out", SOON, |m| m.sum("outboxd_dispatched_total", &[]) >= 1.0).await;
    assert_eq!(emit(&mut connection).await, first, "dispatched, and retained");
    place.account().await.assert_all_published(0);
    run(&mut connection, "delete from outbox.message").await.unwrap();
    assert_ne!(emit(&mut connection).await, first);
    relay.wait_until("the second is out", SOON, |m| m.sum("outboxd_dispatched_total", &[]) >= 2.0).await;
}
