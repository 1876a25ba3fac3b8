//! What the application may write, and what it gets.

use outboxd_core::Seq;
use outboxd_engine::{AuditedAction, HeldId, Operate, OperateError};
use uuid::Uuid;

use super::*;
use crate::SqliteOperator;

/// The refusal's text.
async fn refusal(shop: &Shop, columns_and_values: &str) -> String {
    let mut application = shop.application().await;
    let sql = format!("insert into outbox_message {columns_and_values}");
    let error = execute(&mut application, &sql).await.expect_err(columns_and_values);
    error.as_database_error().unwrap().message().to_owned()
}

#[tokio::test]
async fn a_bad_intent_is_refused_with_what_to_do_about_it() {
    let shop = Shop::open().await;
    for (intent, says) in [
        ("(topic, payload) values ('', 'x')", "topic is empty"),
        ("(topic, payload) values (null, 'x')", "topic is empty"),
        ("(topic, payload) values ('a b', 'x')", "topic is not a legal name"),
        ("(topic, payload) values ('a]', 'x')", "topic is not a legal name"),
        ("(topic, payload) values ('ü', 'x')", "topic is not a legal name"),
        ("(topic, payload) values ('a' || char(0) || 'b', 'x')", "topic is not a legal name"),
        ("(topic, payload) values ('..', 'x')", "topic is not a legal name"),
        ("(topic, payload) values ('__consumer_offsets', 'x')", "topic is not a legal name"),
        ("(topic, payload) values (printf('%.*c', 250, 'x'), 'x')", "topic is not a legal name"),
        ("(topic, payload) values ('a', 3)", "payload is a number"),
        ("(topic) values ('a')", "neither payload nor key"),
        ("(topic, key, payload) values ('a', x'00', 'x')", "key is not text"),
        ("(topic, payload, partition) values ('a', 'x', -1)", "partition is not a number from 0"),
        ("(topic, payload, partition) values ('a', 'x', 1.5)", "partition is not a number from 0"),
        ("(topic, payload, partition) values ('a', 'x', 2147483648)", "partition is not a number from 0"),
        ("(topic, payload, headers) values ('a', 'x', '{a: 1}')", "headers are not JSON"),
        ("(topic, payload, headers) values ('a', 'x', x'00')", "headers are not JSON"),
        ("(topic, payload, headers) values ('a', 'x', '[]')", "headers are not a JSON object"),
        ("(topic, payload, headers) values ('a', 'x', '{\"a\": 1}')", "a header is not a string"),
        ("(topic, payload, headers) values ('a', 'x', '{\"a\": null}')", "a header is not a string"),
        (
            "(topic, payload, headers) values ('a', 'x', '{\"\": \"1\"}')",
            "a header name is empty or too long",
        ),
        ("(topic, payload, headers) values ('a', 'x', '{\"id\": \"1\"}')", "a header name is reserved"),
        (
            "(topic, payload, headers) values ('a', 'x', '{\"outbox-time\": \"1\"}')",
            "a header name is reserved",
        ),
        ("(topic, payload, correlation_id) values ('a', 'x', '')", "correlation_id is empty"),
        ("(topic, payload, traceparent) values ('a', 'x', x'00')", "is not text"),
        ("(topic, payload, correlation_id) values ('a', 'x', printf('%.*c', 1001, 'x'))", "is too long"),
        ("(topic, payload, causation_id) values ('a', 'x', printf('%.*c', 1001, 'x'))", "is too long"),
        ("(topic, payload, content_type) values ('a', 'x', printf('%.*c', 1001, 'x'))", "is too long"),
        ("(topic, payload, traceparent) values ('a', 'x', printf('%.*c', 1001, 'x'))", "is too long"),
        ("(topic, payload, tracestate) values ('a', 'x', printf('%.*c', 8193, 'x'))", "is too long"),
        (
            "(topic, payload, deliver_after) values ('a', 'x', '2031-01-02T03:04:05Z')",
            "deliver_after is no time",
        ),
        ("(topic, payload, deliver_after) values ('a', 'x', 'tomorrow')", "deliver_after is no time"),
        ("(topic, payload, deliver_after) values ('a', 'x', 1893456000)", "deliver_after is no time"),
        (
            "(topic, payload, idempotency_key) values ('a', 'x', '')",
            "idempotency_key is not text of 1 to 500",
        ),
        (
            "(topic, payload, idempotency_key) values ('a', 'x', x'00')",
            "idempotency_key is not text of 1 to 500",
        ),
        ("(topic, payload, id) values ('a', 'x', 'order-1')", "id is no UUID"),
        ("(topic, payload, id) values ('a', 'x', 17)", "id is no UUID"),
        ("(topic, payload, id) values ('a', 'x', x'00')", "id is no UUID"),
        ("(topic, payload, created_at) values ('a', 'x', '2020-01-01T00:00:00.000Z')", "created_at is set"),
        ("(topic, payload, seq) values ('a', 'x', 0)", "seq was drawn already"),
        ("(topic, payload) values ('a', zeroblob(1000000))", "larger than outbox_setting.max_message_bytes"),
        // A violated CHECK would be skipped over in silence here.
    ] {
        let text = refusal(&shop, intent).await;
        assert!(text.starts_with("outbox refuses this intent: ") && text.contains(says), "{intent}: {text}");
    }
    let error = execute(
        &mut shop.application().await,
        "insert or ignore into outbox_message (topic, payload) values ('', 'x')",
    )
    .await;
    assert!(error.is_err(), "`or ignore` does not lose an intent in silence");
    assert_eq!(shop.number("select count(*) from outbox_message").await, 0);
}

#[tokio::test]
async fn an_intent_at_the_limit_is_taken_and_the_limit_can_be_changed() {
    let shop = Shop::open().await;
    shop.run(
        "insert into outbox_message (topic, payload, correlation_id) values ('a', zeroblob(999999), 'c')",
    )
    .await;
    shop.run("update outbox_setting set max_message_bytes = 10").await;
    shop.run(
        "insert into outbox_message (topic, key, payload, correlation_id) values ('a', 'ü', '1234567', 'c')",
    )
    .await;
    let text =
        refusal(&shop, "(topic, key, payload, correlation_id) values ('a', 'ü', '12345678', 'c')").await;
    assert!(text.contains("max_message_bytes"), "{text}");
}

#[tokio::test]
async fn an_explicit_null_means_not_set_and_returning_shows_the_default() {
    let shop = Shop::open().await;
    let mut application = shop.application().await;
    let mut ids = Vec::new();
    for _ in 0..50 {
        let (seq, id, correlation_id): (i64, String, String) = sqlx::query_as(
            "insert into outbox_message (id, correlation_id, topic, payload) values (null, null, 'a', 'x')
             returning seq, id, correlation_id",
        )
        .fetch_one(&mut application)
        .await
        .unwrap();
        let id: Uuid = id.parse().unwrap();
        assert_eq!((id.get_version_num(), id.get_variant()), (7, uuid::Variant::RFC4122));
        let correlation_id: Uuid = correlation_id.parse().unwrap();
        assert_eq!(
            (correlation_id.get_version_num(), correlation_id.get_variant()),
            (4, uuid::Variant::RFC4122)
        );
        assert!(seq > 0);
        ids.push(id);
    }
    let (seconds, _) = ids[0].get_timestamp().unwrap().to_unix();
    let now = shop.number("select cast(strftime('%s', 'now') as integer)").await;
    assert!(u64::try_from(now).unwrap() - seconds < 60);
    let (outbox, before) = (shop.outbox(), ids.clone());
    let (_, start) = lead(&outbox).await;
    let (messages, _) = read(&outbox, &start.cursor).await;
    assert_eq!(messages.iter().map(|message| message.id).collect::<Vec<_>>(), before);
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 50);
}

#[tokio::test]
async fn ids_and_payloads_are_taken_as_text_or_as_bytes() {
    let shop = Shop::open().await;
    let id = Uuid::new_v4();
    shop.run(&format!(
        "insert into outbox_message (id, topic, payload) values
           ('{}', 'a', 'schlüssel' || char(0) || 'x'), (x'{}', 'a', x'ff00'), (upper('{id}'), 'a', x''),
           (null, 'a', json_object('total', 12))",
        id,
        id.simple(),
    ))
    .await;
    let outbox = shop.outbox();
    let (_, start) = lead(&outbox).await;
    let (messages, _) = read(&outbox, &start.cursor).await;
    assert!(messages[..3].iter().all(|message| message.id == id));
    let payloads: Vec<_> = messages.iter().map(|message| message.payload.clone().unwrap()).collect();
    assert_eq!(payloads, ["schlüssel\0x".as_bytes(), &[0xff, 0], &[], b"{\"total\":12}"]);
}

#[tokio::test]
async fn text_that_is_no_unicode_is_mended_and_stops_nobody() {
    let shop = Shop::open().await;
    shop.run(
        r#"insert into outbox_message (topic, key, payload, headers) values
             ('a', cast(x'61ff' as text), 'x', '{"h":"\ud800"}'), ('a', 'b', 'x', null)"#,
    )
    .await;
    let outbox = shop.outbox();
    let (_, start) = lead(&outbox).await;
    let (messages, _) = read(&outbox, &start.cursor).await;
    assert_eq!(messages.len(), 2);
    assert_eq!(messages[0].key.as_deref(), Some("a\u{fffd}"));
    assert_eq!(messages[0].headers, [("h".to_owned(), "\u{fffd}".to_owned())]);
}

#[tokio::test]
async fn intents_are_neither_changed_nor_deleted_before_they_are_delivered() {
    let shop = Shop::open().await;
    shop.run("insert into outbox_message (topic, payload) values ('a', '1'), ('a', '2'), ('a', '3')").await;
    shop.run("update outbox_cursor set high = 2").await;
    shop.run(
        "insert into outbox_held (seq, id, topic, state, reason) values (2, 'x', 'a', 'parked', 'too_large')",
    )
    .await;
    let mut application = shop.application().await;
    for sql in [
        "update outbox_message set payload = 'forged'",
        "delete from outbox_message",
        "delete from outbox_message where seq = 2",
        "delete from outbox_message where seq = 3",
        "insert or replace into outbox_message (seq, topic, payload) values (3, 'a', 'forged')",
        "replace into outbox_message (seq, topic, payload) values (1, 'a', 'forged')",
    ] {
        let error = execute(&mut application, sql).await.expect_err(sql);
        assert!(error.as_database_error().is_some(), "{sql}: {error}");
    }
    assert_eq!(shop.number("select count(*) from outbox_message where payload <> 'forged'").await, 3);
    execute(&mut application, "delete from outbox_message where seq = 1").await.unwrap();
}

#[tokio::test]
async fn a_place_that_readers_may_have_passed_is_never_taken() {
    let shop = Shop::open().await;
    shop.run("insert into outbox_message (topic, payload) values ('a', '1'), ('a', '2'), ('a', '3')").await;
    shop.run("update outbox_cursor set high = 3").await;
    shop.run("delete from outbox_message where seq < 3").await;
    for seq in [-5, 0, 1, 2, 3] {
        let text = refusal(&shop, &format!("(seq, topic, payload) values ({seq}, 'a', 'x')")).await;
        assert!(text.contains("seq was drawn already"), "{seq}: {text}");
    }
    // A place ahead of all others does no harm.
    shop.run("insert into outbox_message (seq, topic, payload) values (10, 'a', 'x')").await;
    shop.run("insert into outbox_message (topic, payload) values ('a', 'x')").await;
    assert_eq!(shop.number("select max(seq) from outbox_message").await, 11);
    let text = refusal(&shop, "(seq, topic, payload) values (7, 'a', 'x')").await;
    assert!(
        text.contains("seq was drawn already"),
        "above the cursor, below what may have been read: {text}"
    );
}

#[tokio::test]
async fn a_held_message_whose_id_was_used_twice_is_named_by_its_seq() {
    let shop = Shop::open().await;
    let id = Uuid::new_v4();
    shop.run(&format!(
        "insert into outbox_message (id, topic, payload) values ('{id}', 'a', 'x'), ('{id}', 'a', 'y');
         insert into outbox_held (seq, id, topic, state, reason) select seq, id, topic, 'parked', 'too_large' from outbox_message"
    ))
    .await;
    let operator = SqliteOperator::new(shop.config());
    let action = AuditedAction { who: "ops".into(), why: "test".into() };
    for refused in [operator.held_retry(id, &action).await, operator.held_discard(id, &action).await] {
        let Err(OperateError::SeveralHeld { seqs, .. }) = refused else { panic!("{refused:?}") };
        assert_eq!(seqs, [Seq(1), Seq(2)]);
    }
    assert_eq!(shop.number("select count(*) from outbox_held_action").await, 0);
    operator.held_discard(HeldId { id, seq: Some(Seq(2)) }, &action).await.unwrap();
    assert_eq!(shop.number("select seq from outbox_held").await, 1);
    operator.held_retry(id, &action).await.unwrap();
}

#[tokio::test]
async fn an_idempotency_key_is_written_once_and_a_plain_insert_that_repeats_it_fails() {
    let shop = Shop::open().await;
    let columns = "(topic, payload, idempotency_key) values ('a', 'x', 'order-17')";
    let once = format!(
        "insert into outbox_message {columns}
         on conflict (idempotency_key) where idempotency_key is not null do nothing"
    );
    shop.run(&once).await;
    shop.run(&once).await;
    assert_eq!(shop.number("select count(*) from outbox_message").await, 1);
    let refused = refusal(&shop, columns).await;
    assert!(refused.contains("UNIQUE constraint failed: outbox_message.idempotency_key"), "{refused}");
}

#[tokio::test]
async fn only_what_is_scheduled_and_not_yet_due_can_be_cancelled() {
    let shop = Shop::open().await;
    shop.run(
        "insert into outbox_message (id, topic, payload, deliver_after) values
           ('00000000-0000-4000-8000-000000000001', 'a', 'x', '2001-01-02T03:04:05.000Z'),
           ('00000000-0000-4000-8000-000000000002', 'a', 'x', null),
           (x'00000000000040008000000000000003', 'a', 'x', '2101-01-02T03:04:05.000Z')",
    )
    .await;
    let mut application = shop.application().await;
    for id in ["'00000000-0000-4000-8000-000000000001'", "'00000000-0000-4000-8000-000000000002'", "'other'"]
    {
        let error = execute(&mut application, &format!("insert into outbox_cancelled (id) values ({id})"))
            .await
            .expect_err(id);
        assert!(error.to_string().contains("refuses to cancel"), "{error}");
    }
    let operator = SqliteOperator::new(shop.config());
    let action = AuditedAction { who: "ops".into(), why: "withdrawn".into() };
    let id = |nth: u128| Uuid::from_u128(0x4000_8000_0000_0000_0000 + nth);
    assert!(matches!(operator.scheduled_cancel(id(2), &action).await, Err(OperateError::NotScheduled(_))));
    for _ in 0..2 {
        operator.scheduled_cancel(id(3), &action).await.unwrap();
    }
    assert_eq!(shop.number("select count(*) from outbox_cancelled where who = 'ops'").await, 1);
}
