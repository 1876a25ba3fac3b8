//! The inbox, and the consumer of the documentation on top of it: each message takes effect once, and no failure is ever
//! acknowledged.

use std::time::Duration;

use outbox_client::postgres::{INBOX_MIGRATIONS, Inbox};
use outbox_client::{Claim, Delivery, Error};
use outboxd_postgres::migrate::{GrantRoles, MigrateError, Migrator};
use outboxd_sqlite::SqliteConfig;
use outboxd_testkit::postgres::Database;
use outboxd_testkit::relay::{Setup, eventually};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use uuid::Uuid;

use crate::migrations::{migrator, run, text};
use crate::support::{BINARY, SOON};

pub(crate) mod incident;

/// The loop of the documentation, the very file.
#[path = "../crates/client/examples/consumer/once.rs"]
pub(crate) mod once;

pub(crate) fn inbox_migrator(url: &str, schema: &str) -> Migrator {
    Migrator::inbox(url.parse().unwrap(), schema.parse().unwrap())
}

async fn with_inbox() -> Database {
    let database = Database::create().await;
    inbox_migrator(&database.url(), "inbox").apply().await.unwrap();
    database
}

fn delivery() -> Delivery {
    let id = Uuid::new_v4().to_string();
    let headers = [("id", Some(id.as_bytes())), ("correlation-id", Some(b"req-1".as_slice()))];
    Delivery::from_headers(headers).unwrap().at("orders", 2, 7)
}

#[tokio::test]
async fn a_message_is_fresh_once_for_each_consumer_and_its_copies_are_counted() {
    let database = with_inbox().await;
    let mut connection = database.connect().await;
    let message = delivery();
    for (consumer, expected) in [
        ("shipping", Claim::Fresh),
        ("shipping", Claim::Duplicate),
        ("billing", Claim::Fresh),
        ("shipping", Claim::Duplicate),
    ] {
        let mut transaction = connection.begin().await.unwrap();
        assert_eq!(Inbox::of(consumer).claim(&mut transaction, &message).await.unwrap(), expected);
        transaction.commit().await.unwrap();
    }
    let kept = "select string_agg(concat_ws(',', consumer, correlation_id, topic, partition, record_offset, duplicates,
        last_duplicate_at >= claimed_at), ' / ' order by consumer desc) from inbox.handled";
    assert_eq!(
        text(&mut connection, kept).await.unwrap(),
        "shipping,req-1,orders,2,7,2,t / billing,req-1,orders,2,7,0"
    );
}

#[tokio::test]
async fn a_claim_goes_with_the_transaction_that_made_it() {
    let database = with_inbox().await;
    let mut connection = database.connect().await;
    let (inbox, message) = (Inbox::of("shipping"), delivery());
    for _ in 0..2 {
        let mut transaction = connection.begin().await.unwrap();
        assert_eq!(inbox.claim(&mut transaction, &message).await.unwrap(), Claim::Fresh);
        assert_eq!(inbox.claim(&mut transaction, &message).await.unwrap(), Claim::Duplicate);
        transaction.rollback().await.unwrap();
    }
}

/// What the second of two transactions gets that claim the same message at the same time.
async fn second(isolation: &str, first_commits: bool) -> Result<Claim, Error> {
    let database = with_inbox().await;
    let (mut one, mut two) = (database.connect().await, database.connect().await);
    let mut watch = database.connect().await;
    let (inbox, message) = (Inbox::of("shipping"), delivery());
    let mut first = one.begin().await.unwrap();
    assert_eq!(inbox.claim(&mut first, &message).await.unwrap(), Claim::Fresh);
    let mut transaction =
        two.begin_with(AssertSqlSafe(format!("begin isolation level {isolation}"))).await.unwrap();
    // Its snapshot is older than the first one's commit.
    run(&mut transaction, "select 1 from inbox.handled").await.unwrap();
    let finish = async {
        let waits = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
        eventually("the second waits", SOON, async || {
            (text(&mut watch, waits).await.as_deref() == Some("1")).then_some(())
        })
        .await;
        if first_commits { first.commit().await.unwrap() } else { first.rollback().await.unwrap() }
    };
    let (claim, ()) = tokio::join!(inbox.claim(&mut transaction, &message), finish);
    if claim.is_err() {
        // The whole transaction again, as the error says.
        transaction.rollback().await.unwrap();
        let mut again =
            two.begin_with(AssertSqlSafe(format!("begin isolation level {isolation}"))).await.unwrap();
        assert_eq!(inbox.claim(&mut again, &message).await.unwrap(), Claim::Duplicate);
        again.commit().await.unwrap();
    }
    claim
}

#[tokio::test]
async fn a_second_claim_waits_for_the_first_and_is_a_duplicate_only_if_that_commits() {
    assert_eq!(second("read committed", true).await.unwrap(), Claim::Duplicate);
    assert_eq!(second("read committed", false).await.unwrap(), Claim::Fresh);
}

#[tokio::test]
async fn under_a_snapshot_a_second_claim_is_to_be_tried_again_after_the_first_has_committed() {
    for isolation in ["repeatable read", "serializable"] {
        let error = second(isolation, true).await.unwrap_err();
        assert!(matches!(error, Error::Conflict { .. }), "{isolation}: {error}");
        assert_eq!(second(isolation, false).await.unwrap(), Claim::Fresh, "{isolation}");
    }
}

#[tokio::test]
async fn a_purge_forgets_what_is_old_in_small_steps_and_keeps_what_still_comes() {
    let database = with_inbox().await;
    let mut connection = database.connect().await;
    run(
        &mut connection,
        "insert into inbox.handled (consumer, id, claimed_at, last_duplicate_at)
         select 'shipping', gen_random_uuid(), now() - interval '1 day' * n, case n when 9 then now() end from generate_series(0, 9) n",
    )
    .await
    .unwrap();
    let inbox = Inbox::of("shipping");
    let week = Duration::from_secs(7 * 24 * 3600 - 60);
    assert_eq!(inbox.purge(&mut connection, week, 1).await.unwrap(), 1);
    assert_eq!(inbox.purge(&mut connection, week, 1000).await.unwrap(), 1);
    assert_eq!(inbox.purge(&mut connection, week, 1000).await.unwrap(), 0);
    assert_eq!(text(&mut connection, "select count(*) from inbox.handled").await.unwrap(), "8");
    let error = run(&mut connection, "select inbox.purge(null)").await.unwrap_err().to_string();
    assert!(error.contains("inbox refuses this purge"), "{error}");
}

#[tokio::test]
async fn the_inbox_is_installed_alone_beside_an_outbox_and_in_any_schema_but_the_outboxs() {
    let database = Database::create().await;
    let setup = Setup::new(BINARY, &database.url(), "127.0.0.1:1");
    assert!(setup.run_ok(&["migrate", "--inbox", "--dry-run"]).await.contains("create table inbox.handled"));
    assert!(
        setup.run_ok(&["migrate", "--inbox"]).await.contains("applied migration 1 (inbox) in schema inbox")
    );
    assert!(setup.run_ok(&["migrate", "--inbox"]).await.contains("the inbox in schema inbox is up to date"));
    assert!(setup.run_ok(&["migrate"]).await.contains("(outbox) in schema outbox"));
    setup.run_ok(&["migrate", "--inbox", "--schema", "shipping_inbox"]).await;
    let mut connection = database.connect().await;
    let mut transaction = connection.begin().await.unwrap();
    let claim = Inbox::in_schema("c", "shipping_inbox").unwrap().claim(&mut transaction, &delivery()).await;
    assert_eq!(claim.unwrap(), Claim::Fresh);
    transaction.commit().await.unwrap();
    assert_eq!(text(&mut connection, "select count(*) from inbox.handled").await.unwrap(), "0");

    for (error, says) in [
        (
            inbox_migrator(&database.url(), "outbox").apply().await.unwrap_err(),
            "schema outbox holds an outbox: give the inbox",
        ),
        (
            migrator(&database.url(), "inbox").apply().await.unwrap_err(),
            "schema inbox holds an inbox: give the outbox",
        ),
    ] {
        assert!(
            matches!(error, MigrateError::Taken { .. }) && error.to_string().starts_with(says),
            "{error}"
        );
    }
}

#[tokio::test]
async fn the_migration_of_the_crate_is_the_one_that_the_command_knows() {
    let database = Database::create().await;
    let mut connection = database.connect().await;
    for sql in INBOX_MIGRATIONS {
        let mut transaction = connection.begin().await.unwrap();
        run(&mut transaction, sql).await.unwrap();
        transaction.commit().await.unwrap();
    }
    let applied = inbox_migrator(&database.url(), "inbox").apply().await.unwrap();
    assert!(applied.is_empty());
    assert_eq!(outboxd_postgres::migrate::INBOX_MIGRATIONS.map(|migration| migration.sql), INBOX_MIGRATIONS);
    assert_eq!(
        outboxd_sqlite::migrate::INBOX_MIGRATIONS.map(|migration| migration.sql),
        outbox_client::sqlite::INBOX_MIGRATIONS
    );
}

#[tokio::test]
async fn a_consumer_can_claim_and_purge_and_nothing_else() {
    let database = with_inbox().await;
    let role = database.role("consumer").await;
    let inbox = Inbox::of("shipping");
    let mut connection = database.connect_as(&role).await;
    let claim = async |connection: &mut PgConnection| {
        let mut transaction = connection.begin().await.unwrap();
        let message = delivery();
        let first = inbox.claim(&mut transaction, &message).await?;
        let second = inbox.claim(&mut transaction, &message).await?;
        transaction.commit().await.unwrap();
        Ok((first, second))
    };
    let error = claim(&mut connection).await.unwrap_err();
    assert!(matches!(error, Error::NotGranted { .. }), "{error}");
    assert!(error.to_string().contains("`outboxd migrate grants --consumer ROLE`"), "{error}");

    let setup = Setup::new(BINARY, &database.url(), "127.0.0.1:1");
    let granted = setup.run_ok(&["migrate", "grants", "--consumer", &role]).await;
    assert!(granted.contains("may act as consumer"), "{granted}");
    assert_eq!(claim(&mut connection).await.unwrap(), (Claim::Fresh, Claim::Duplicate));
    assert_eq!(inbox.purge(&mut connection, Duration::from_secs(3600), 10).await.unwrap(), 0);
    for sql in [
        "update inbox.handled set id = gen_random_uuid()",
        "update inbox.handled set consumer = 'x'",
        "select * from inbox.migration",
        "truncate inbox.handled",
        "create table inbox.mine ()",
    ] {
        let error = run(&mut connection, sql).await.unwrap_err().to_string();
        assert!(error.contains("permission denied"), "{sql}: {error}");
    }
    let roles = GrantRoles { consumer: Some(role.parse().unwrap()), ..GrantRoles::default() };
    let error = inbox_migrator(&database.url(), "elsewhere").grant(&roles).await.unwrap_err();
    assert!(error.to_string().contains("run `outboxd migrate --inbox` first"), "{error}");
}

#[tokio::test]
async fn an_inbox_that_is_not_there_and_a_consumer_without_a_name_are_told() {
    let database = Database::create().await;
    let mut connection = database.connect().await;
    let mut transaction = connection.begin().await.unwrap();
    let error = Inbox::of("shipping").claim(&mut transaction, &delivery()).await.unwrap_err();
    assert!(matches!(error, Error::NotInstalled { .. }), "{error}");
    assert!(error.to_string().ends_with("let its owner run `outboxd migrate --inbox`"), "{error}");
    transaction.rollback().await.unwrap();
    inbox_migrator(&database.url(), "inbox").apply().await.unwrap();
    let mut transaction = connection.begin().await.unwrap();
    let error = Inbox::of("").claim(&mut transaction, &delivery()).await.unwrap_err();
    assert!(matches!(error, Error::Refused { .. }) && error.to_string().contains("'shipping'"), "{error}");
}

#[tokio::test]
async fn a_sqlite_inbox_does_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("app.db");
    let url = format!("sqlite:{}", path.display());
    let setup = Setup::new(BINARY, &url, "127.0.0.1:1");
    let applied = setup.run_ok(&["migrate", "--inbox"]).await;
    assert!(applied.contains("applied migration 1 (inbox)"), "{applied}");
    assert!(outboxd_sqlite::Migrator::inbox(SqliteConfig::new(&path)).apply().await.unwrap().is_empty());
    let mut connection = sqlx::SqliteConnection::connect(&url).await.unwrap();
    let (inbox, message) = (outbox_client::sqlite::Inbox::of("shipping"), delivery());
    for (commit, expected) in [(false, Claim::Fresh), (true, Claim::Fresh), (true, Claim::Duplicate)] {
        let mut transaction = connection.begin().await.unwrap();
        assert_eq!(inbox.claim(&mut transaction, &message).await.unwrap(), expected);
        if commit { transaction.commit().await.unwrap() } else { transaction.rollback().await.unwrap() }
    }
    let duplicates: i64 = sqlx::query_scalar("select duplicates from inbox_handled where record_offset = 7")
        .fetch_one(&mut connection)
        .await
        .unwrap();
    assert_eq!(duplicates, 1);

    // One writer at a time: whoever does not want to wait is told to try again.
    let mut other = sqlx::SqliteConnection::connect(&url).await.unwrap();
    sqlx::query("pragma busy_timeout = 0").execute(&mut other).await.unwrap();
    let mut holding = connection.begin_with("begin immediate").await.unwrap();
    assert_eq!(inbox.claim(&mut holding, &delivery()).await.unwrap(), Claim::Fresh);
    let mut transaction = other.begin().await.unwrap();
    let error = inbox.claim(&mut transaction, &delivery()).await.unwrap_err();
    assert!(matches!(error, Error::Conflict { .. }), "{error}");
    transaction.rollback().await.unwrap();
    holding.commit().await.unwrap();

    sqlx::query("update inbox_handled set claimed_at = '2020-01-01T00:00:00.000Z'")
        .execute(&mut connection)
        .await
        .unwrap();
    assert_eq!(
        inbox.purge(&mut connection, Duration::from_secs(3600), 10).await.unwrap(),
        1,
        "the other one had a copy just now"
    );
}
