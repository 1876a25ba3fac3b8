//! The lease, the file, and what is left of a term.

use outboxd_engine::{Operate, OutboxError, Severity};

use super::*;
use crate::SqliteOperator;

fn says(error: &OutboxError) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"))
}

/// Polls until somebody else leads.
async fn takes_over(outbox: &SqliteOutbox, within: Duration) -> Term {
    let end = tokio::time::Instant::now() + within;
    loop {
        if let Some(term) = outbox.lead().await.unwrap() {
            return term;
        }
        assert!(tokio::time::Instant::now() < end, "the lease did not run out within {within:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn the_lease_of_a_silent_leader_runs_out() {
    let shop = Shop::open().await;
    let short = SqliteConfig { lease: Duration::from_millis(500), ..shop.config() };
    let (leader, standby) = (SqliteOutbox::new(short.clone()), SqliteOutbox::new(short));
    let (term, start) = lead(&leader).await;
    assert_eq!(term.keep_every, Duration::from_millis(500) / 3);
    assert_eq!(standby.lead().await.unwrap(), None);
    let next = takes_over(&standby, Duration::from_secs(10)).await;
    assert_eq!(next.epoch, term.epoch + 1);

    // It was frozen, not dead.
    let refused = leader.settle(moving(term, &start.cursor, &start.cursor)).await.unwrap_err();
    assert!(matches!(refused, OutboxError::Fenced), "{}", says(&refused));
}

#[tokio::test]
async fn keeping_and_settling_renew_the_lease() {
    let shop = Shop::open().await;
    let outbox = shop.outbox();
    let (term, start) = lead(&outbox).await;
    let alive = "select lease_until > strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '+8 seconds') from outbox_cursor";
    let ran_out = "update outbox_cursor set lease_until = '2020-01-01T00:00:00.000Z'";
    assert_eq!(shop.number(alive).await, 1);
    shop.run(ran_out).await;
    outbox.keep(term).await.unwrap();
    assert_eq!(shop.number(alive).await, 1, "nobody took it meanwhile");
    shop.run(ran_out).await;
    outbox.settle(moving(term, &start.cursor, &start.cursor)).await.unwrap();
    assert_eq!(shop.number(alive).await, 1);
    assert_eq!(shop.outbox().lead().await.unwrap(), None);
}

#[tokio::test]
async fn a_clock_that_was_set_back_does_not_keep_the_lead_for_ever() {
    let shop = Shop::open().await;
    let outbox = shop.outbox();
    let (term, _) = lead(&outbox).await;
    shop.run(
        "update outbox_cursor set kept_at = '2999-01-01T00:00:00.000Z', lease_until = '2999-01-01T00:00:10.000Z'",
    )
    .await;
    let next = shop.outbox().lead().await.unwrap().unwrap();
    assert_eq!(next.epoch, term.epoch + 1);
    assert!(matches!(outbox.keep(term).await, Err(OutboxError::Fenced)));
}

#[tokio::test]
async fn a_lead_that_was_taken_by_a_call_given_up_half_way_is_given_back() {
    let shop = Shop::open().await;
    let outbox = shop.outbox();
    for steps in 0..60 {
        // Polled so many times and then dropped.
        let mut leading = Box::pin(outbox.lead());
        for _ in 0..steps {
            let polled = tokio::time::timeout(Duration::from_micros(200), &mut leading).await;
            if polled.is_ok() {
                break;
            }
        }
        drop(leading);
        outbox.step_down().await;
        let other = shop.outbox();
        assert!(other.lead().await.unwrap().is_some(), "dropped after {steps} steps");
        other.step_down().await;
    }
}

#[tokio::test]
async fn a_settle_given_up_half_way_is_stored_as_a_whole_or_not_at_all() {
    let shop = Shop::open().await;
    for _ in 0..40 {
        shop.run("insert into outbox_message (topic, payload) values ('a', 'x')").await;
    }
    let mut stored = 0;
    for steps in 0..40 {
        let outbox = shop.outbox();
        let (term, start) = lead(&outbox).await;
        let (messages, after) = read(&outbox, &start.cursor).await;
        let settlement = Settlement {
            receipts: vec![outboxd_core::ReceiptEntry {
                seq: messages[0].seq,
                topic: "a".into(),
                receipt: outboxd_core::Receipt { partition: 0, offset: 0 },
                acknowledged_ms_before: 0,
            }],
            ..moving(term, &start.cursor, &Cursor { high: messages[0].seq, ..after })
        };
        let mut settling = Box::pin(outbox.settle(settlement));
        for _ in 0..steps {
            if tokio::time::timeout(Duration::from_micros(100), &mut settling).await.is_ok() {
                break;
            }
        }
        drop(settling);
        outbox.step_down().await;
        let high = shop.number("select high from outbox_cursor").await;
        let receipts = shop.number("select count(*) from outbox_receipt").await;
        assert!(high == stored || high == stored + 1, "{high} after {stored}");
        assert_eq!(high, receipts, "dropped after {steps} steps");
        stored = high;
    }
    assert!(stored > 0, "some were stored");
}

#[tokio::test]
async fn a_file_that_takes_the_place_of_another_ends_the_term() {
    let (shop, backup) = (Shop::open().await, Shop::open().await);
    shop.run("insert into outbox_message (topic, payload) values ('a', 'x'), ('a', 'y')").await;
    backup.run("insert into outbox_message (topic, payload) values ('a', 'restored')").await;
    backup.run("pragma wal_checkpoint(truncate)").await;
    let outbox = shop.outbox();
    let (term, start) = lead(&outbox).await;
    let (messages, after) = read(&outbox, &start.cursor).await;
    assert_eq!(messages.len(), 2);

    for suffix in ["-wal", "-shm"] {
        let path = format!("{}{suffix}", shop.config().path.display());
        std::fs::remove_file(path).unwrap();
    }
    std::fs::rename(backup.config().path, shop.config().path).unwrap();
    for refused in [
        outbox.keep(term).await.unwrap_err(),
        outbox.settle(moving(term, &start.cursor, &after)).await.unwrap_err(),
        outbox.read(&after, LIMIT).await.unwrap_err(),
    ] {
        assert!(matches!(refused, OutboxError::Unavailable { .. }), "{}", says(&refused));
    }
    outbox.step_down().await;
    let (_, start) = lead(&outbox).await;
    let (messages, _) = read(&outbox, &start.cursor).await;
    assert_eq!(messages.len(), 1);
    assert_eq!(messages[0].payload.as_deref(), Some(&b"restored"[..]));
}

#[tokio::test]
async fn a_file_that_is_not_there_is_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let config = SqliteConfig::new(directory.path().join("shop.db"));
    let outbox = SqliteOutbox::new(config.clone());
    let missing = outbox.lead().await.unwrap_err();
    assert!(matches!(missing, OutboxError::Unavailable { .. }), "{}", says(&missing));
    assert!(!config.path.exists(), "only migrate creates it");
    Migrator::new(config).apply().await.unwrap();
    assert!(outbox.lead().await.unwrap().is_some());
}

#[tokio::test]
async fn a_database_without_an_outbox_of_a_known_version_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let config = SqliteConfig::new(directory.path().join("shop.db"));
    execute(
        &mut SqliteConnectOptions::new()
            .filename(&config.path)
            .create_if_missing(true)
            .connect()
            .await
            .unwrap(),
        "create table orders (id integer primary key)",
    )
    .await
    .unwrap();
    let refused = SqliteOutbox::new(config.clone()).lead().await.unwrap_err();
    assert!(
        matches!(&refused, OutboxError::Refused { remedy, .. } if remedy.contains("outboxd migrate")),
        "{refused}"
    );

    Migrator::new(config.clone()).apply().await.unwrap();
    execute(
        &mut application(&config.path).await,
        "insert into outbox_migration (version, name) values (7, 'later')",
    )
    .await
    .unwrap();
    let refused = SqliteOutbox::new(config).lead().await.unwrap_err();
    assert!(
        matches!(&refused, OutboxError::Refused { finding, .. } if finding.contains("version 7")),
        "{refused}"
    );
}

#[tokio::test]
async fn a_sequence_below_the_cursor_is_refused_with_the_way_out() {
    let shop = Shop::open().await;
    shop.run("insert into outbox_message (topic, payload) values ('a', '1'), ('a', '2')").await;
    shop.run("update outbox_cursor set high = 2; delete from outbox_message; delete from sqlite_sequence")
        .await;
    let refused = shop.outbox().lead().await.unwrap_err();
    let OutboxError::Refused { finding, remedy } = refused else { panic!("{}", says(&refused)) };
    assert!(finding.contains("stands at 0, below the cursor at 2"), "{finding}");
    // The application cannot write below the cursor meanwhile.
    let below = "insert into outbox_message (topic, payload) values ('a', 'x')";
    execute(&mut shop.application().await, below).await.unwrap_err();
    let remedy = remedy.strip_prefix("run `").unwrap().strip_suffix('`').unwrap().to_owned();
    shop.run(&remedy).await;
    shop.run(below).await;
    let outbox = shop.outbox();
    let (_, start) = lead(&outbox).await;
    assert_eq!(read(&outbox, &start.cursor).await.0[0].seq.0, 3);
}

#[tokio::test]
async fn leading_puts_the_file_in_wal_mode() {
    let shop = Shop::open().await;
    shop.run("pragma journal_mode = delete").await;
    let findings = SqliteOperator::new(shop.config()).check().await.unwrap();
    let finding = findings.iter().find(|finding| finding.check == "journal mode").unwrap();
    assert_eq!(finding.severity, Severity::Warning);
    let outbox = shop.outbox();
    lead(&outbox).await;
    let mode: String =
        sqlx::query_scalar("pragma journal_mode").fetch_one(&mut shop.application().await).await.unwrap();
    assert_eq!(mode, "wal");
}

#[tokio::test]
async fn a_preflight_names_what_is_missing() {
    let shop = Shop::open().await;
    shop.run("drop trigger outbox_message_refuse").await;
    shop.run("insert into outbox_message (topic, payload) values ('a', '1'), ('a', '2')").await;
    shop.run("update outbox_cursor set high = 2; delete from outbox_message; delete from sqlite_sequence")
        .await;
    let findings = SqliteOperator::new(shop.config()).check().await.unwrap();
    let errors: Vec<_> = findings
        .iter()
        .filter(|finding| finding.severity == Severity::Error)
        .map(|finding| (finding.check.as_str(), finding.remedy.is_empty()))
        .collect();
    assert_eq!(errors, [("sequence", false), ("triggers", false)]);
}
