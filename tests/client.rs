//! The client crate in an application's own transactions: what it writes, inherits and says when it cannot.

use outbox_client::{Context, Error, Intent};
use outboxd_postgres::migrate::GrantRoles;
use outboxd_testkit::postgres::Database;
use sqlx::{Connection, PgPool, Row};
use time::macros::datetime;
use uuid::Uuid;

use crate::migrations::{installed, migrator, run, text};

/// Everything that an intent can say.
fn complete(id: Uuid) -> Intent {
    Intent::to("orders")
        .key("order-17")
        .payload_json(&serde_json::json!({"order": 17}))
        .unwrap()
        .header("tenant", "42")
        .header("tenant", "43")
        .partition(3)
        .content_type("application/vnd.order+json")
        .correlation_id("req-1")
        .causation_id("click-1")
        .traceparent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
        .tracestate("vendor=1")
        .deliver_after(datetime!(2030-01-02 03:04:05.678 UTC))
        .idempotency_key("order-17-placed")
        .id(id)
}

#[tokio::test]
async fn an_intent_is_written_with_everything_that_it_says_in_the_callers_transaction() {
    let database = installed().await;
    let outbox = outbox_client::postgres::Outbox::new();
    let pool = PgPool::connect(&database.url()).await.unwrap();
    let id = Uuid::new_v4();

    let mut transaction = pool.begin().await.unwrap();
    assert_eq!(outbox.emit(&mut transaction, &complete(id)).await.unwrap(), id);
    transaction.rollback().await.unwrap();
    let mut connection = database.connect().await;
    assert_eq!(text(&mut connection, "select count(*) from outbox.message").await.unwrap(), "0");

    let mut transaction = connection.begin().await.unwrap();
    outbox.emit(&mut transaction, &complete(id)).await.unwrap();
    transaction.commit().await.unwrap();
    let written = "select concat_ws('|', id = '{id}', topic, key, convert_from(payload, 'UTF8'), headers, partition, content_type,
        correlation_id, causation_id, traceparent, tracestate, deliver_after at time zone 'utc', idempotency_key) from outbox.message";
    assert_eq!(
        text(&mut connection, &written.replace("{id}", &id.to_string())).await.unwrap(),
        "t|orders|order-17|{\"order\":17}|{\"tenant\": \"43\"}|3|application/vnd.order+json|req-1|click-1|\
         00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01|vendor=1|2030-01-02 03:04:05.678|order-17-placed"
    );
}

#[tokio::test]
async fn an_intent_inherits_from_its_context_what_it_does_not_set() {
    let database = installed().await;
    let outbox = outbox_client::postgres::Outbox::new();
    let mut connection = database.connect().await;
    let around = Context {
        causation_id: Some("click-1".into()),
        traceparent: Some("00-trace-01".into()),
        ..Context::correlated("req-1")
    };
    around
        .scope(async {
            let mut transaction = connection.begin().await.unwrap();
            run(&mut transaction, "select set_config('outbox.correlation_id', 'setting', true), set_config('outbox.tracestate', 's=1', true)")
                .await
                .unwrap();
            outbox.emit(&mut transaction, &Intent::to("orders").payload_text("1")).await.unwrap();
            outbox
                .emit(&mut transaction, &Intent::to("orders").payload_text("2").correlation_id("own"))
                .await
                .unwrap();
            transaction.commit().await.unwrap();
        })
        .await;
    outbox.emit(&mut connection, &Intent::to("orders").key("k").tombstone()).await.unwrap();
    let sql = "select string_agg(concat_ws(',', case when payload is null then 'fresh ' || length(correlation_id) else correlation_id end,
        causation_id, traceparent, tracestate), ' / ' order by seq) from outbox.message";
    assert_eq!(
        text(&mut connection, sql).await.unwrap(),
        "req-1,click-1,00-trace-01,s=1 / own,click-1,00-trace-01,s=1 / fresh 36"
    );
}

#[tokio::test]
async fn a_second_emit_of_an_idempotency_key_returns_the_first_id_and_writes_nothing() {
    let database = installed().await;
    let outbox = outbox_client::postgres::Outbox::new();
    let mut connection = database.connect().await;
    let intent = Intent::to("orders").payload_text("x").idempotency_key("once");
    let first = outbox.emit(&mut connection, &intent).await.unwrap();
    let second = outbox.emit(&mut connection, &intent.clone().id(Uuid::new_v4())).await.unwrap();
    assert_eq!(first, second);
    assert_eq!(text(&mut connection, "select count(*) from outbox.message").await.unwrap(), "1");
}

#[tokio::test]
async fn a_scheduled_intent_is_taken_back_before_its_time_and_no_other() {
    let database = installed().await;
    let outbox = outbox_client::postgres::Outbox::new();
    let mut connection = database.connect().await;
    let soon = Intent::to("orders").payload_text("x");
    let later = soon.clone().deliver_after(datetime!(2130-01-01 00:00 UTC));
    let (soon, later) = (
        outbox.emit(&mut connection, &soon).await.unwrap(),
        outbox.emit(&mut connection, &later).await.unwrap(),
    );
    assert!(outbox.cancel(&mut connection, later, "withdrawn").await.unwrap());
    assert!(!outbox.cancel(&mut connection, soon, "withdrawn").await.unwrap());
}

#[tokio::test]
async fn a_bad_intent_is_refused_in_the_databases_words_with_its_hint() {
    let database = installed().await;
    let outbox = outbox_client::postgres::Outbox::new();
    let mut connection = database.connect().await;
    let error =
        outbox.emit(&mut connection, &Intent::to("no topic").payload_text("secret")).await.unwrap_err();
    let Error::Refused { hint, .. } = &error else { panic!("{error}") };
    assert!(hint.as_ref().unwrap().contains("249 characters"));
    assert!(
        error
            .to_string()
            .starts_with("outbox refuses this intent: topic 'no topic' is not a legal name: A topic")
    );
    let error = outbox.emit(&mut connection, &Intent::to("orders")).await.unwrap_err();
    assert!(matches!(error, Error::Incomplete) && error.to_string().contains("tombstone"));
}

#[tokio::test]
async fn an_outbox_that_is_not_there_or_not_granted_names_the_command_that_helps() {
    let database = Database::create().await;
    let intent = Intent::to("orders").payload_text("x");
    let outbox = outbox_client::postgres::Outbox::in_schema("shop").unwrap();
    let said = async |role: Option<&str>| {
        let mut connection = match role {
            Some(role) => database.connect_as(role).await,
            None => database.connect().await,
        };
        outbox.emit(&mut connection, &intent).await.unwrap_err()
    };
    let error = said(None).await;
    assert!(matches!(error, Error::NotInstalled { .. }), "{error}");
    assert!(error.to_string().ends_with("let its owner run `outboxd migrate --schema shop`"), "{error}");

    let migrator = migrator(&database.url(), "shop");
    migrator.apply().await.unwrap();
    let writer = database.role("writer").await;
    let error = said(Some(&writer)).await;
    assert!(matches!(error, Error::NotGranted { .. }), "{error}");
    assert!(error.to_string().contains("`outboxd migrate grants --writer ROLE --schema shop`"), "{error}");

    let roles = GrantRoles { writer: Some(writer.parse().unwrap()), ..GrantRoles::default() };
    migrator.grant(&roles).await.unwrap();
    let mut connection = database.connect_as(&writer).await;
    outbox.emit(&mut connection, &intent).await.unwrap();
    assert!(outbox_client::postgres::Outbox::in_schema("Shop\"").is_err());
}

#[tokio::test]
async fn sqlite_takes_the_same_intents_and_says_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("app.db");
    let config = outboxd_sqlite::SqliteConfig::new(&path);
    let url = format!("sqlite:{}?mode=rwc", path.display());
    let mut connection = sqlx::SqliteConnection::connect(&url).await.unwrap();
    let outbox = outbox_client::sqlite::Outbox;
    let plain = Intent::to("orders").payload_text("x");
    let error = outbox.emit(&mut connection, &plain).await.unwrap_err();
    assert!(matches!(error, Error::NotInstalled { .. }) && error.to_string().contains("`outboxd migrate`"));
    outboxd_sqlite::Migrator::new(config).apply().await.unwrap();

    let id = Uuid::new_v4();
    let mut transaction = connection.begin().await.unwrap();
    assert_eq!(outbox.emit(&mut transaction, &complete(id)).await.unwrap(), id);
    let again = Intent::to("orders").payload_text("y").idempotency_key("order-17-placed");
    assert_eq!(outbox.emit(&mut transaction, &again).await.unwrap(), id);
    transaction.commit().await.unwrap();
    let row = sqlx::query(
        "select concat_ws('|', topic, key, cast(payload as text), headers, partition, content_type, correlation_id, causation_id,
           traceparent, tracestate, deliver_after, idempotency_key) as written, count(*) as intents from outbox_message",
    )
    .fetch_one(&mut connection)
    .await
    .unwrap();
    assert_eq!(
        (row.get::<String, _>("written").as_str(), row.get::<i64, _>("intents")),
        (
            "orders|order-17|{\"order\":17}|{\"tenant\":\"43\"}|3|application/vnd.order+json|req-1|click-1|\
             00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01|vendor=1|2030-01-02T03:04:05.678Z|order-17-placed",
            1
        )
    );

    let fresh = Context::correlated("req-2")
        .scope(async { outbox.emit(&mut connection, &plain).await.unwrap() })
        .await;
    let correlation_id: String =
        sqlx::query_scalar("select correlation_id from outbox_message where id = ?1")
            .bind(fresh.to_string())
            .fetch_one(&mut connection)
            .await
            .unwrap();
    assert_eq!(correlation_id, "req-2");
    assert!(outbox.cancel(&mut connection, id, "withdrawn").await.unwrap());
    assert!(outbox.cancel(&mut connection, id, "withdrawn again").await.unwrap());
    let why: String = sqlx::query_scalar("select why from outbox_cancelled where id = ?1")
        .bind(id.to_string())
        .fetch_one(&mut connection)
        .await
        .unwrap();
    assert_eq!(why, "withdrawn again");
    assert!(!outbox.cancel(&mut connection, fresh, "withdrawn").await.unwrap());
    let error = outbox.emit(&mut connection, &Intent::to("").payload_text("x")).await.unwrap_err();
    assert!(matches!(error, Error::Refused { .. }) && error.to_string().contains("Name the Kafka topic"));
}
