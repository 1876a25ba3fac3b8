//! Writing intents: what lands in the table, what is inherited, what is refused and with which words, and the order that
//! two writers of one aggregate get.

use outboxd_core::record::{RESERVED_HEADERS, topic_is_legal};
use outboxd_testkit::postgres::Database;
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};
use uuid::Uuid;

use crate::migrations::{installed, migrator, run, text, wait_until};

/// What must never appear in an error.
const CANARY: &str = "kanarienvogel";

#[tokio::test]
async fn payload_bytes_are_kept_exactly_as_written() {
    let database = installed().await;
    let mut connection = database.connect().await;
    let all: Vec<u8> = (0..=255).chain([0, 0xff, 0xfe]).collect();
    sqlx::query("insert into outbox.message (topic, payload) values ('orders', $1)")
        .bind(&all)
        .execute(&mut connection)
        .await
        .unwrap();
    sqlx::query("select outbox.emit(topic => 'orders', payload => $1::bytea)")
        .bind(&all)
        .execute(&mut connection)
        .await
        .unwrap();
    let stored: Vec<Vec<u8>> =
        sqlx::query_scalar("select payload from outbox.message").fetch_all(&mut connection).await.unwrap();
    assert_eq!(stored, [all.clone(), all]);
}

#[tokio::test]
async fn emit_says_which_bytes_each_type_becomes() {
    let database = installed().await;
    let mut connection = database.connect().await;
    for (payload, bytes, content_type) in [
        ("'\\x00ff'::bytea", &b"\x00\xff"[..], None),
        ("'Größe \\x00'::text", "Größe \\x00".as_bytes(), None),
        // An untyped literal is text: its bytes stay as they are written.
        (r#"'{"b":1,  "a":[1.50, 2]}'"#, br#"{"b":1,  "a":[1.50, 2]}"#, None),
        // jsonb is PostgreSQL's normal form of it.
        (
            r#"'{"bb":1,  "a":[1.50,"é"], "bb": 2}'::jsonb"#,
            r#"{"a": [1.50, "é"], "bb": 2}"#.as_bytes(),
            Some("application/json"),
        ),
        ("''", b"", None),
    ] {
        let row = sqlx::query(AssertSqlSafe(format!(
            "select outbox.emit(topic => 'orders', payload => {payload}) as id"
        )))
        .fetch_one(&mut connection)
        .await
        .unwrap();
        let id: Uuid = row.get("id");
        let row = sqlx::query("select payload, content_type from outbox.message where id = $1")
            .bind(id)
            .fetch_one(&mut connection)
            .await
            .unwrap();
        assert_eq!(row.get::<&[u8], _>("payload"), bytes, "{payload}");
        assert_eq!(row.get::<Option<&str>, _>("content_type"), content_type, "{payload}");
    }
    // A driver that sends a parameter without a type gets the text overload, and a NULL is a tombstone.
    run(&mut connection, "prepare e as select outbox.emit('orders', $1, key => 'k'); execute e (null)")
        .await
        .unwrap();
    assert_eq!(
        text(&mut connection, "select payload is null from outbox.message order by seq desc limit 1")
            .await
            .as_deref(),
        Some("true")
    );
}

#[tokio::test]
async fn emitted_text_is_utf8_whatever_the_databases_encoding() {
    let database = installed().await;
    let mut server = database.connect().await;
    let name = format!("{}_latin1", database.name());
    run(
        &mut server,
        &format!("create database {name} encoding 'LATIN1' lc_collate 'C' lc_ctype 'C' template template0"),
    )
    .await
    .unwrap();
    let url = outboxd_testkit::postgres::database::with_database(&database.url(), &name);
    migrator(&url, "outbox").apply().await.unwrap();
    let mut connection = PgConnection::connect(&url).await.unwrap();
    run(
        &mut connection,
        "select outbox.emit('orders', 'Größe'), outbox.emit('orders', '{\"a\": \"é\"}'::jsonb)",
    )
    .await
    .unwrap();
    let stored: Vec<Vec<u8>> = sqlx::query_scalar("select payload from outbox.message order by seq")
        .fetch_all(&mut connection)
        .await
        .unwrap();
    connection.close().await.unwrap();
    run(&mut server, &format!("drop database {name} with (force)")).await.unwrap();
    assert_eq!(stored, ["Größe".as_bytes(), "{\"a\": \"é\"}".as_bytes()]);
}

#[tokio::test]
async fn every_column_that_a_writer_may_set_is_kept() {
    let database = installed().await;
    let mut connection = database.connect().await;
    let insert = "insert into outbox.message (id, topic, key, payload, headers, partition, content_type, correlation_id,
                    causation_id, traceparent, tracestate)
                  values ('00000000-0000-4000-8000-000000000001', 'orders', 'k', 'p', '{\"tenant\": \"42\"}', 3, 'text/plain',
                    'corr', 'cause', '00-aa-bb-01', 'v=1')";
    let emit = "select outbox.emit(id => '00000000-0000-4000-8000-000000000001', topic => 'orders', key => 'k',
                  payload => 'p'::bytea, headers => '{\"tenant\": \"42\"}', partition => 3, content_type => 'text/plain',
                  correlation_id => 'corr', causation_id => 'cause', traceparent => '00-aa-bb-01', tracestate => 'v=1')";
    for statement in [insert, emit, &emit.replace("::bytea", "::text")] {
        run(&mut connection, statement).await.unwrap();
        assert_eq!(
            text(
                &mut connection,
                "select concat_ws('|', id, topic, key, convert_from(payload, 'UTF8'), headers, partition, content_type,
                   correlation_id, causation_id, traceparent, tracestate) from outbox.message order by seq desc limit 1",
            )
            .await
            .as_deref(),
            Some("00000000-0000-4000-8000-000000000001|orders|k|p|{\"tenant\": \"42\"}|3|text/plain|corr|cause|00-aa-bb-01|v=1")
        );
    }
}

#[tokio::test]
async fn a_fresh_id_is_a_uuid_of_version_7() {
    let database = installed().await;
    let mut connection = database.connect().await;
    run(
        &mut connection,
        "insert into outbox.message (topic, payload) select 'orders', 'x' from generate_series(1, 1000)",
    )
    .await
    .unwrap();
    run(&mut connection, "insert into outbox.message (id, topic, payload) select null, 'orders', 'x' from generate_series(1, 1000)").await.unwrap();
    let rows =
        sqlx::query("select id, (extract(epoch from created_at) * 1000)::bigint as ms from outbox.message")
            .fetch_all(&mut connection)
            .await
            .unwrap();
    let mut ids = std::collections::HashSet::new();
    for row in rows {
        let id: Uuid = row.get("id");
        assert_eq!((id.get_version_num(), id.get_variant()), (7, uuid::Variant::RFC4122), "{id}");
        let (seconds, nanos) = id.get_timestamp().unwrap().to_unix();
        let ms = i64::try_from(seconds).unwrap() * 1000 + i64::from(nanos / 1_000_000);
        assert!((ms - row.get::<i64, _>("ms")).abs() < 1000, "{id} says {ms}");
        assert!(ids.insert(id));
    }
    assert_eq!(ids.len(), 2000);
}

#[tokio::test]
async fn settings_of_the_transaction_are_inherited_by_every_intent() {
    let database = installed().await;
    let mut connection = database.connect().await;
    run(
        &mut connection,
        "begin;
         select set_config('outbox.correlation_id', 'corr', true), set_config('outbox.causation_id', 'cause', true),
                set_config('outbox.traceparent', '00-aa-bb-01', true), set_config('outbox.tracestate', 'v=1', true);
         insert into outbox.message (topic, payload) values ('orders', '1'), ('orders', '2');
         insert into outbox.message (topic, payload) select 'orders', n::text::bytea from generate_series(3, 4) n;
         insert into outbox.message (topic, payload, correlation_id) values ('orders', '5', null);
         select outbox.emit('orders', '6'), outbox.emit('orders', '7'::bytea), outbox.emit('orders', '8'::jsonb);
         savepoint s; insert into outbox.message (topic, payload) values ('orders', '9'); release s;
         commit",
    )
    .await
    .unwrap();
    assert_eq!(
        text(
            &mut connection,
            "select count(*) from outbox.message where correlation_id = 'corr' and causation_id = 'cause'
               and traceparent = '00-aa-bb-01' and tracestate = 'v=1'"
        )
        .await
        .as_deref(),
        Some("9")
    );
    // What an intent says itself wins.
    run(
        &mut connection,
        "begin; select set_config('outbox.correlation_id', 'corr', true), set_config('outbox.causation_id', 'cause', true);
         truncate outbox.message;
         insert into outbox.message (topic, payload, correlation_id, causation_id) values ('orders', '1', 'own', 'mine');
         select outbox.emit('orders', '2', correlation_id => 'own', causation_id => 'mine');
         commit",
    )
    .await
    .unwrap();
    assert_eq!(
        text(
            &mut connection,
            "select count(*) from outbox.message where correlation_id = 'own' and causation_id = 'mine'"
        )
        .await
        .as_deref(),
        Some("2")
    );
}

#[tokio::test]
async fn where_nothing_is_set_a_fresh_correlation_id_is_made() {
    let database = installed().await;
    let mut connection = database.connect().await;
    // Settings of the last transaction are gone, and an empty one counts as not set.
    run(
        &mut connection,
        "begin; select set_config('outbox.correlation_id', 'corr', true), set_config('outbox.traceparent', 'x', true); commit;
         insert into outbox.message (topic, payload) values ('orders', '1');
         insert into outbox.message (topic, payload, correlation_id) values ('orders', '2', null);
         select outbox.emit('orders', '3');
         select set_config('outbox.correlation_id', '', false), set_config('outbox.causation_id', '', false);
         insert into outbox.message (topic, payload) values ('orders', '4');
         select outbox.emit('orders', '5')",
    )
    .await
    .unwrap();
    let rows =
        sqlx::query("select correlation_id, causation_id, traceparent, tracestate from outbox.message")
            .fetch_all(&mut connection)
            .await
            .unwrap();
    assert_eq!(rows.len(), 5);
    let fresh: std::collections::HashSet<Uuid> =
        rows.iter().map(|row| row.get::<&str, _>("correlation_id").parse().unwrap()).collect();
    assert_eq!(fresh.len(), 5);
    for (row, column) in rows.iter().flat_map(|row| [1, 2, 3].map(|column| (row, column))) {
        assert_eq!(row.get::<Option<&str>, _>(column), None);
    }
}

#[tokio::test]
async fn an_explicit_null_in_id_or_correlation_id_means_not_set() {
    let database = installed().await;
    let mut connection = database.connect().await;
    // As an ORM writes it: every column, most of them NULL, and what the database made comes back.
    let row = sqlx::query(
        "insert into outbox.message (id, topic, key, payload, headers, partition, content_type, correlation_id, causation_id,
           traceparent, tracestate) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) returning id, seq, correlation_id",
    )
    .bind(None::<Uuid>)
    .bind("orders")
    .bind(None::<&str>)
    .bind(&b"x"[..])
    .bind(None::<serde_json::Value>)
    .bind(None::<i32>)
    .bind(None::<&str>)
    .bind(None::<&str>)
    .bind(None::<&str>)
    .bind(None::<&str>)
    .bind(None::<&str>)
    .fetch_one(&mut connection)
    .await
    .unwrap();
    assert_eq!(row.get::<Uuid, _>("id").get_version_num(), 7);
    assert_eq!(row.get::<i64, _>("seq"), 1);
    assert!(row.get::<&str, _>("correlation_id").parse::<Uuid>().is_ok());
    assert_eq!(
        text(&mut connection, "select xid = pg_current_xact_id() from outbox.message").await.as_deref(),
        Some("false"),
        "the trigger leaves xid to its default"
    );
}

#[tokio::test]
async fn a_tombstone_has_a_key_and_no_payload() {
    let database = installed().await;
    let mut connection = database.connect().await;
    run(
        &mut connection,
        "insert into outbox.message (topic, key) values ('orders', 'k');
         insert into outbox.message (topic, key, payload) values ('orders', 'k', null);
         select outbox.emit('orders', null, key => 'k'), outbox.emit('orders', null::bytea, key => 'k'),
                outbox.emit('orders', null::jsonb, key => 'k')",
    )
    .await
    .unwrap();
    assert_eq!(
        text(&mut connection, "select count(*) from outbox.message where payload is null and key = 'k'")
            .await
            .as_deref(),
        Some("5")
    );
}

/// Columns, values, what the error says, what its hint says.
const REFUSALS: &[(&str, &str, &str, &str)] = &[
    ("topic, payload", "'', CANARY", "topic is empty", "Name the Kafka topic"),
    ("topic, payload", "null, CANARY", "topic is NULL", "Name the Kafka topic"),
    ("payload", "CANARY", "topic is NULL", "Name the Kafka topic"),
    (
        "topic, payload",
        "'a b', CANARY",
        "topic 'a b' is not a legal name",
        "1 to 249 characters of a-z, A-Z, 0-9",
    ),
    ("topic, payload", "'.', CANARY", "topic '.' is not a legal name", "not \".\" or \"..\""),
    ("topic, payload", "'..', CANARY", "topic '..' is not a legal name", "not \".\" or \"..\""),
    ("topic, payload", "'__consumer_offsets', CANARY", "is not a legal name", "belong to Kafka"),
    ("topic, payload", "repeat('a', 250), CANARY", "is not a legal name", "1 to 249"),
    ("topic, payload", "'größe', CANARY", "is not a legal name", "1 to 249"),
    (
        "topic, payload, headers",
        "'orders', CANARY, '[\"a\"]'",
        "headers are a JSON array",
        "one JSON object whose values are strings",
    ),
    ("topic, payload, headers", "'orders', CANARY, '\"a\"'", "headers are a JSON string", "one JSON object"),
    ("topic, payload, headers", "'orders', CANARY, 'null'", "headers are a JSON null", "No headers: NULL"),
    (
        "topic, payload, headers",
        "'orders', CANARY, '{\"a\": 1}'",
        "header 'a' is a JSON number",
        "Header values are strings",
    ),
    (
        "topic, payload, headers",
        "'orders', CANARY, '{\"a\": null}'",
        "header 'a' is a JSON null",
        "Header values are strings",
    ),
    (
        "topic, payload, headers",
        "'orders', CANARY, '{\"a\": [\"b\"]}'",
        "header 'a' is a JSON array",
        "Header values are strings",
    ),
    (
        "topic, payload, headers",
        "'orders', CANARY, '{\"a\": {\"kanarienvogel\": \"x\"}}'",
        "header 'a' is a JSON object",
        "as text",
    ),
    (
        "topic, payload, headers",
        "'orders', CANARY, '{\"id\": \"x\"}'",
        "header name 'id' is reserved",
        "set the column of that name",
    ),
    (
        "topic, payload, headers",
        "'orders', CANARY, '{\"outbox-time\": \"x\"}'",
        "header name 'outbox-time' is reserved",
        "outbox-*",
    ),
    (
        "topic, payload, headers",
        "'orders', CANARY, '{\"\": \"x\"}'",
        "a header name is 0 bytes long",
        "1 to 256 bytes",
    ),
    (
        "topic, payload, headers",
        "'orders', CANARY, jsonb_build_object(repeat('é', 129), 'x')",
        "a header name is 258 bytes long",
        "1 to 256 bytes",
    ),
    ("topic, payload, partition", "'orders', CANARY, -1", "partition -1 is negative", "let the key decide"),
    ("topic", "'orders'", "neither payload nor key", "give it a key"),
    ("topic, headers", "'orders', '{\"a\": \"kanarienvogel\"}'", "neither payload nor key", "give it a key"),
    ("topic, payload, correlation_id", "'orders', CANARY, ''", "correlation_id is empty", "Leave it out"),
    (
        "topic, key, payload",
        "'orders', CANARY, repeat('kanarienvogel', 100000)::bytea",
        "payload (1300000 bytes), key (13) and headers (36) are larger than 1000000 bytes together",
        "raise the limit: the function max_message_bytes()",
    ),
    (
        "topic, key, payload",
        "'orders', repeat('x', 999999), CANARY",
        "are larger than 1000000 bytes",
        "send a reference",
    ),
    (
        "topic, payload, headers",
        "'orders', CANARY, jsonb_build_object('a', repeat('kanarienvogel', 100000))",
        "headers (1300045) are larger",
        "send a reference",
    ),
    (
        "topic, payload, tracestate",
        "'orders', CANARY, repeat('x', 1000000)",
        "tracestate (1000000) is too long",
        "into a header or the payload",
    ),
    (
        "topic, payload, correlation_id",
        "'orders', CANARY, repeat('é', 501)",
        "correlation_id (1002 bytes)",
        "others 1000",
    ),
    (
        "topic, payload, causation_id",
        "'orders', CANARY, repeat('x', 1001)",
        "causation_id (1001)",
        "others 1000",
    ),
    (
        "topic, payload, content_type",
        "'orders', CANARY, repeat('x', 1001)",
        "content_type (1001)",
        "others 1000",
    ),
    (
        "topic, payload, traceparent",
        "'orders', CANARY, repeat('x', 1001)",
        "traceparent (1001)",
        "tracestate takes 8192",
    ),
];

#[tokio::test]
async fn a_bad_intent_is_refused_with_what_to_do_and_without_its_payload() {
    let database = installed().await;
    let mut connection = database.connect().await;
    let writer = database.role("writer").await;
    let roles =
        outboxd_postgres::migrate::GrantRoles { writer: Some(writer.parse().unwrap()), ..Default::default() };
    migrator(&database.url(), "outbox").grant(&roles).await.unwrap();
    let mut writer = database.connect_as(&writer).await;
    for (columns, values, problem, remedy) in REFUSALS {
        let values = values.replace("CANARY", &format!("'{CANARY}'"));
        let statement = format!("insert into outbox.message ({columns}) values ({values})");
        for session in [&mut connection, &mut writer] {
            let error = run(session, &statement).await.expect_err(&statement);
            let sqlx::Error::Database(error) = error else { panic!("{statement}: {error}") };
            let error = error.downcast::<sqlx::postgres::PgDatabaseError>();
            assert_eq!(error.code(), "23514", "{statement}: {error}");
            assert!(error.message().starts_with("outbox refuses this intent: "), "{statement}: {error}");
            assert!(error.message().contains(problem), "{statement}: {}", error.message());
            assert!(
                error.hint().is_some_and(|hint| hint.contains(remedy)),
                "{statement}: {:?}",
                error.hint()
            );
            let whole = format!("{error:?}");
            assert!(!whole.contains(CANARY), "the error shows application data: {whole}");
        }
    }
    assert_eq!(text(&mut connection, "select count(*) from outbox.message").await.as_deref(), Some("0"));
}

#[tokio::test]
async fn a_refused_intent_takes_its_business_change_with_it() {
    let database = installed().await;
    let mut connection = database.connect().await;
    run(&mut connection, "create table shop (n int)").await.unwrap();
    let refused = run(
        &mut connection,
        "begin; insert into shop values (1); insert into outbox.message (topic, payload) values ('a/b', 'x'); commit",
    )
    .await;
    assert!(refused.is_err());
    run(&mut connection, "rollback").await.unwrap();
    assert_eq!(text(&mut connection, "select count(*) from shop").await.as_deref(), Some("0"));
}

#[tokio::test]
async fn unusual_but_legal_intents_are_accepted() {
    let database = installed().await;
    let mut connection = database.connect().await;
    for values in [
        "repeat('a', 249), 'x', null, null",
        "'A.b_c-9', 'x', null, null",
        "'_', 'x', null, null",
        "'...', 'x', null, null",
        "'orders', '', '{}', 0",
        "'orders', 'x', '{\"a\": \"\"}', 2147483647",
        "'orders', 'x', '{\"a\": \"outbox-time\", \"my-outbox-time\": \"x\", \"ID\": \"x\"}', null",
        "'orders', 'x', '{\"say \\\"outbox-\": \"quoted\"}', null",
        "'orders', 'x', jsonb_build_object(repeat('é', 128), 'x'), null",
        "'orders', 'x', jsonb_build_object('a', repeat('x', 5000), 'b', 'y'), null",
    ] {
        let statement =
            format!("insert into outbox.message (topic, payload, headers, partition) values ({values})");
        run(&mut connection, &statement).await.unwrap_or_else(|error| panic!("{statement}: {error}"));
    }
}

#[tokio::test]
async fn the_database_and_the_relay_agree_on_topics_and_reserved_headers() {
    let database = installed().await;
    let mut connection = database.connect().await;
    let letters = ["a", "Z", "0", ".", "_", "-", " ", "/", "é", "__", "\\", "'", "\n", "%"];
    let mut topics: Vec<String> = letters.iter().map(|letter| (*letter).to_owned()).collect();
    for first in letters {
        topics.extend(letters.iter().map(|second| format!("{first}{second}")));
    }
    topics.extend([0, 1, 248, 249, 250].map(|length| "t".repeat(length)));
    for topic in topics {
        let accepted = sqlx::query("insert into outbox.message (topic, payload) values ($1, 'x')")
            .bind(&topic)
            .execute(&mut connection)
            .await
            .is_ok();
        assert_eq!(accepted, topic_is_legal(&topic), "{topic:?}");
    }
    for name in RESERVED_HEADERS.into_iter().chain(["outbox-", "outbox-time", "outbox-replay-id"]) {
        let refused =
            sqlx::query("insert into outbox.message (topic, payload, headers) values ('a', 'x', $1)")
                .bind(serde_json::json!({ "ok": "1", name: "2" }))
                .execute(&mut connection)
                .await
                .unwrap_err();
        assert!(refused.to_string().contains(&format!("header name '{name}' is reserved")), "{refused}");
    }
}

#[tokio::test]
async fn the_size_limit_is_exact_and_an_operator_changes_it_in_the_database() {
    let database = installed().await;
    let mut connection = database.connect().await;
    let insert =
        "insert into outbox.message (topic, key, payload, correlation_id) values ('a', 'key', $1, 'c')";
    let mut emit = async |bytes: usize| {
        // The same session and so the same prepared statement each time.
        sqlx::query(insert).bind(vec![b'x'; bytes]).execute(&mut connection).await.map(|_| ())
    };
    emit(1_000_000 - 4).await.unwrap();
    assert!(emit(1_000_000 - 3).await.unwrap_err().to_string().contains("larger than 1000000 bytes"));
    let mut operator = database.connect().await;
    run(
        &mut operator,
        "create or replace function outbox.max_message_bytes() returns integer
           language plpgsql immutable parallel safe set search_path = pg_catalog, pg_temp as $$ begin return 100; end $$",
    )
    .await
    .unwrap();
    emit(96).await.unwrap();
    assert!(emit(97).await.unwrap_err().to_string().contains("larger than 100 bytes"));
}

/// The ways to bump an aggregate and write its intent in one statement.
const FORMS: [(&str, &str); 6] = [
    (
        "a subquery among the values",
        "with u as (update agg set n = n + 1 where id = 1 returning n)
         insert into outbox.message (topic, key, payload) values ('agg', '1', (select n::text::bytea from u))",
    ),
    (
        "insert from select",
        "with u as (update agg set n = n + 1 where id = 1 returning n)
         insert into outbox.message (topic, key, payload) select 'agg', '1', n::text::bytea from u",
    ),
    (
        "emit over an update",
        "with u as (update agg set n = n + 1 where id = 1 returning n)
         select outbox.emit(topic => 'agg', key => '1', payload => n::text) from u",
    ),
    (
        "emit over a function that updates",
        "select outbox.emit(topic => 'agg', key => '1', payload => bump()::text)",
    ),
    (
        "an anonymous block",
        "do $$ declare v int; begin
           update agg set n = n + 1 where id = 1 returning n into v;
           insert into outbox.message (topic, key, payload) values ('agg', '1', v::text::bytea);
         end $$",
    ),
    ("a trigger on the aggregate", "update agg_with_trigger set n = n + 1 where id = 1"),
];

const AGGREGATES: &str = "
  create table agg (id int primary key, n int not null);
  create table agg_with_trigger (id int primary key, n int not null);
  insert into agg values (1, 0);
  insert into agg_with_trigger values (1, 0);
  create function bump() returns int language sql volatile as 'update agg set n = n + 1 where id = 1 returning n';
  create function tell() returns trigger language plpgsql as $$
    begin perform outbox.emit(topic => 'agg', key => '1', payload => new.n::text); return null; end $$;
  create trigger tell after update on agg_with_trigger for each row execute function tell()";

/// One writer holds the aggregate and has yet to write its intent; another runs the statement and waits; the first writes its
/// intent and commits. Returns the payloads in the order of `seq`.
async fn contended(database: &Database, form: &str, table: &str) -> String {
    let statement = form.replace("outbox.message", table);
    let aggregate = if form.contains("agg_with_trigger") { "agg_with_trigger" } else { "agg" };
    let (mut first, mut second) = (database.connect().await, database.connect().await);
    let mut observer = database.connect().await;
    let pid = text(&mut second, "select pg_backend_pid()").await.expect("every backend has a pid");
    run(&mut first, &format!("begin; select n from {aggregate} where id = 1 for update"))
        .await
        .expect("lock the aggregate");
    let (waited, ()) = tokio::join!(run(&mut second, &statement), async {
        let waits = format!(
            "select coalesce(wait_event_type = 'Lock', false) from pg_stat_activity where pid = {pid}"
        );
        wait_until(&mut observer, &waits).await;
        run(&mut first, &statement).await.expect("write the first intent");
        run(&mut first, "commit").await.expect("commit the first intent");
    });
    waited.expect("write the second intent");
    let in_order = format!("select string_agg(convert_from(payload, 'UTF8'), ' ' order by seq) from {table}");
    text(&mut observer, &in_order).await.expect("two intents were written")
}

/// D3. What the order of a key rests on: the place is drawn after the aggregate is locked.
#[tokio::test]
async fn seq_order_is_the_order_of_the_aggregate_for_every_one_statement_form() {
    for (name, form) in FORMS {
        let database = installed().await;
        run(&mut database.connect().await, AGGREGATES).await.unwrap();
        assert_eq!(contended(&database, form, "outbox.message").await, "1 2", "{name}");
    }
}

#[tokio::test]
async fn a_seq_that_is_drawn_before_the_subquery_inverts_two_events_of_one_aggregate() {
    // Why seq is the last column: with seq first the same statement, under the same contention, numbers them the wrong way.
    let database = installed().await;
    let mut connection = database.connect().await;
    run(&mut connection, AGGREGATES).await.unwrap();
    run(
        &mut connection,
        "create table seq_first (seq bigint generated always as identity primary key, topic text, key text, payload bytea)",
    )
    .await
    .unwrap();
    assert_eq!(contended(&database, FORMS[0].1, "seq_first").await, "2 1");
}
