//! Each part as an ordinary role: what it needs works, and nothing else does.

use outboxd_postgres::migrate::{GrantRoles, MigrateError};
use outboxd_postgres::schema::RoleName;
use outboxd_testkit::postgres::Database;
use sqlx::PgConnection;

use crate::migrations::{installed, migrator, run, text};

/// A database whose outbox is granted to three roles, with two intents in it.
pub(crate) struct Granted {
    pub(crate) database: Database,
    pub(crate) writer: String,
    pub(crate) relay: String,
    pub(crate) reader: String,
}

pub(crate) async fn granted() -> Granted {
    let database = installed().await;
    let (writer, relay, reader) =
        (database.role("writer").await, database.role("relay").await, database.role("reader").await);
    let roles =
        GrantRoles { writer: name(&writer), relay: name(&relay), reader: name(&reader), consumer: None };
    migrator(&database.url(), "outbox").grant(&roles).await.expect("grant each role its part");
    let mut connection = database.connect().await;
    run(
        &mut connection,
        "insert into outbox.message (topic, key, payload) values ('orders', 'k1', 'secret'), ('orders', 'k2', 'secret')",
    )
    .await
    .expect("write two intents");
    Granted { database, writer, relay, reader }
}

fn name(role: &str) -> Option<RoleName> {
    Some(role.parse().expect("the name of a role of a test"))
}

async fn works(connection: &mut PgConnection, statements: &[&str]) {
    for sql in statements {
        run(connection, sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    }
}

async fn refused(connection: &mut PgConnection, statements: &[&str]) {
    for sql in statements {
        let Err(error) = run(connection, sql).await else { panic!("not refused: {sql}") };
        let text = error.to_string();
        assert!(text.contains("permission denied") || text.contains("must be owner"), "{sql}: {text}");
    }
}

#[tokio::test]
async fn a_writer_can_emit_and_nothing_else() {
    let granted = granted().await;
    let mut writer = granted.database.connect_as(&granted.writer).await;
    works(
        &mut writer,
        &[
            "insert into outbox.message (topic, payload) values ('orders', 'x') returning id, seq",
            "insert into outbox.message (id, topic, key, payload, headers, partition, content_type, correlation_id, causation_id,
               traceparent, tracestate) values (gen_random_uuid(), 'orders', 'k', 'x', '{\"a\": \"b\"}', 1, 'text/plain', 'c', 'd',
               '00-a-b-01', 'v=1') returning id, seq",
            "insert into outbox.message (id, topic, payload, correlation_id) values (null, 'orders', 'x', null) returning id",
            "insert into outbox.message (topic, payload, headers) values ('orders', 'x', jsonb_build_object('a', repeat('x', 300)))",
            "select outbox.emit('orders', 'text')",
            "select outbox.emit('orders', '\\x00'::bytea)",
            "select outbox.emit('orders', '{\"a\": 1}'::jsonb)",
            "begin; select set_config('outbox.correlation_id', 'c', true); select outbox.emit('orders', 'x'); commit",
        ],
    )
    .await;
    refused(
        &mut writer,
        &[
            "select payload from outbox.message",
            "select key from outbox.message",
            "select * from outbox.message",
            "select correlation_id from outbox.message",
            "insert into outbox.message (topic, payload) values ('orders', 'x') returning payload",
            "update outbox.message set topic = 'x'",
            "update outbox.message set id = id",
            "delete from outbox.message",
            "truncate outbox.message",
            "insert into outbox.message (xid, topic, payload) values ('3', 'orders', 'x')",
            "insert into outbox.message (seq, topic, payload) overriding system value values (1, 'orders', 'x')",
            "insert into outbox.message (created_at, topic, payload) values (now(), 'orders', 'x')",
            "select setval('outbox.message_seq_seq', 1)",
            "select nextval('outbox.message_seq_seq')",
            "do $$ begin lock table outbox.message in share mode; end $$",
            "alter table outbox.message disable trigger fill_in",
            "alter table outbox.message drop constraint message_size",
            "create or replace function outbox.max_message_bytes() returns integer language sql as 'select 1'",
            "create table outbox.mine ()",
            "create trigger mine before insert on outbox.message for each row execute function outbox.fill_in()",
            "select * from outbox.envelope",
            "select * from outbox.cursor",
            "update outbox.cursor set high = 0",
            "select * from outbox.receipt",
            "select * from outbox.held",
            "delete from outbox.held",
            "select * from outbox.held_action",
            "select * from outbox.fingerprint",
            "select outbox.canary('canary')",
            "insert into outbox.migration (version, name) values (2, 'x')",
        ],
    )
    .await;
    // A bad intent is refused for what it is, not for a missing right.
    let error = run(
        &mut writer,
        "insert into outbox.message (topic, payload, headers) values ('orders', 'x', '{\"id\": \"1\"}')",
    )
    .await;
    assert!(error.unwrap_err().to_string().contains("header name 'id' is reserved"));
}

#[tokio::test]
async fn the_relay_cannot_write_or_alter_an_intent() {
    let granted = granted().await;
    let mut relay = granted.database.connect_as(&granted.relay).await;
    works(
        &mut relay,
        &[
            "select * from outbox.message order by seq",
            "delete from outbox.message where seq = (select min(seq) from outbox.message)",
            "update outbox.cursor set epoch = epoch + 1, nonce = gen_random_uuid(), relay = 'r', led_at = now(), high = 0,
               seen = pg_current_snapshot(), pos = null, until = null, xid_bound = pg_current_xact_id(), settled_at = now(),
               system_identifier = (select system_identifier from pg_control_system())",
            "insert into outbox.receipt (epoch, relay, out_of_order, cursor_before, cursor_after, seq_first, seq_last, messages, receipts)
               values (1, 'r', false, '0', '1', 1, 1, 1, '')",
            "delete from outbox.receipt",
            "insert into outbox.held (seq, id, topic, key_hash, state, reason) values (2, gen_random_uuid(), 'orders', 1, 'parked', 'too_large')",
            "update outbox.held set state = 'retry', due_at = now(), attempts = 1",
            "insert into outbox.held_action (kind, id, seq, topic, reason_held, who, why)
               select 'discard', id, seq, topic, reason, 'me', 'test' from outbox.held",
            "delete from outbox.held",
            "select max(action) from outbox.held_action",
            "select * from outbox.envelope",
            "select max(version) from outbox.migration",
            "select last_value from outbox.message_seq_seq",
            "select pg_current_wal_insert_lsn(), pg_current_wal_flush_lsn(), pg_postmaster_start_time()",
            "select pg_logical_emit_message(true, 'outboxd', '')",
            "select pg_try_advisory_lock(1, 'outbox.message'::regclass::oid::int)",
            "select outbox.canary('canary')",
            "select * from outbox.fingerprint",
        ],
    )
    .await;
    refused(
        &mut relay,
        &[
            "insert into outbox.message (topic, payload) values ('orders', 'x')",
            "select outbox.emit('orders', 'x')",
            "update outbox.message set payload = ''",
            "update outbox.message set xid = '3'",
            "truncate outbox.message",
            "alter table outbox.message add column x int",
            "select nextval('outbox.message_seq_seq')",
            "select setval('outbox.message_seq_seq', 1)",
            "insert into outbox.cursor (epoch, high, seen, xid_bound) values (0, 0, pg_current_snapshot(), '3')",
            "delete from outbox.cursor",
            "update outbox.receipt set messages = 0",
            "update outbox.held_action set who = 'somebody else'",
            "delete from outbox.held_action",
            "insert into outbox.migration (version, name) values (2, 'x')",
            "drop table outbox.held",
            "create table outbox.mine ()",
        ],
    )
    .await;
}

#[tokio::test]
async fn a_reader_sees_no_payload_and_changes_nothing() {
    let granted = granted().await;
    let mut connection = granted.database.connect().await;
    run(
        &mut connection,
        "insert into outbox.held (seq, id, topic, key_hash, state, reason)
         select seq, id, topic, 1, 'parked', 'too_large' from outbox.message where key = 'k1'",
    )
    .await
    .unwrap();
    let mut reader = granted.database.connect_as(&granted.reader).await;
    works(
        &mut reader,
        &[
            "select * from outbox.held",
            "select * from outbox.held_action",
            "select * from outbox.receipt",
            "select * from outbox.cursor",
            "select * from outbox.migration",
            "select last_value from outbox.message_seq_seq",
            "select seq, xid, id, topic, correlation_id, created_at from outbox.message",
            "select * from outbox.fingerprint",
        ],
    )
    .await;
    assert_eq!(
        text(&mut reader, "select e.payload_bytes from outbox.envelope e join outbox.held h using (seq)")
            .await
            .as_deref(),
        Some("6"),
        "sizes may be known"
    );
    assert_eq!(
        text(
            &mut reader,
            "select count(*) from pg_attribute where attrelid = 'outbox.envelope'::regclass
               and attname in ('payload', 'key', 'headers')"
        )
        .await
        .as_deref(),
        Some("0")
    );
    refused(
        &mut reader,
        &[
            "select outbox.canary('canary')",
            "select payload from outbox.message",
            "select octet_length(payload) from outbox.message",
            "select key from outbox.message",
            "select headers from outbox.message",
            "select m from outbox.message m",
            "select 1 from outbox.message where payload = 'secret'",
            "insert into outbox.message (topic, payload) values ('orders', 'x')",
            "select outbox.emit('orders', 'x')",
            "update outbox.message set topic = 'x'",
            "delete from outbox.message",
            "update outbox.cursor set high = 0",
            "delete from outbox.held",
            "update outbox.held set state = 'retry'",
            "insert into outbox.held_action (kind, id, seq, topic, reason_held, who, why)
               values ('discard', gen_random_uuid(), 1, 'orders', 'too_large', 'me', 'test')",
            "delete from outbox.receipt",
            "update outbox.envelope set topic = 'x'",
        ],
    )
    .await;
}

#[tokio::test]
async fn a_role_without_grants_can_do_nothing() {
    let database = installed().await;
    let nobody = database.role("nobody").await;
    let mut nobody = database.connect_as(&nobody).await;
    refused(
        &mut nobody,
        &[
            "select outbox.emit('orders', 'x')",
            "select seq from outbox.message",
            "select outbox.refuse('a', 'b')",
        ],
    )
    .await;
}

#[tokio::test]
async fn a_role_that_does_not_exist_is_named_and_nothing_is_granted() {
    let database = installed().await;
    let writer = database.role("writer").await;
    let roles = GrantRoles {
        writer: name(&writer),
        relay: name("no such role"),
        reader: name("ghost"),
        consumer: None,
    };
    let error = migrator(&database.url(), "outbox").grant(&roles).await.unwrap_err();
    assert!(error.to_string().starts_with("no such role: ghost, no such role; create it first"), "{error}");
    let mut writer = database.connect_as(&writer).await;
    refused(&mut writer, &["select outbox.emit('orders', 'x')"]).await;
}

#[tokio::test]
async fn granting_before_migrating_says_what_to_do_first() {
    let database = Database::create().await;
    let writer = database.role("writer").await;
    let roles = GrantRoles { writer: name(&writer), ..GrantRoles::default() };
    let error = migrator(&database.url(), "outbox").grant(&roles).await.unwrap_err();
    assert!(matches!(error, MigrateError::NotInstalled(_)));
    assert!(error.to_string().contains("run `outboxd migrate` first"), "{error}");
}

#[tokio::test]
async fn a_grant_that_the_server_only_warns_about_is_an_error() {
    let granted = granted().await;
    let another = granted.database.role("another").await;
    // The relay's own role may use the schema and grant nothing of it.
    let roles = GrantRoles { writer: name(&another), ..GrantRoles::default() };
    let error = migrator(&granted.database.url_as(&granted.relay), "outbox").grant(&roles).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("permission denied") || text.contains("still lacks"), "{text}");
    assert!(text.contains("as the owner"), "{text}");
    let reader = GrantRoles { reader: name(&another), ..GrantRoles::default() };
    let error =
        migrator(&granted.database.url_as(&granted.reader), "outbox").grant(&reader).await.unwrap_err();
    assert!(error.to_string().contains("still lacks: select"), "{error}");
}

#[tokio::test]
async fn the_dry_run_of_grants_is_what_granting_does() {
    let database = installed().await;
    let mut connection = database.connect().await;
    let strange = r#"O"Brien; drop schema outbox cascade --"#;
    run(&mut connection, r#"create role "O""Brien; drop schema outbox cascade --""#).await.unwrap();
    let migrator = migrator(&database.url(), "outbox");
    let roles =
        GrantRoles { writer: name(strange), relay: name(strange), reader: name(strange), consumer: None };
    for sql in migrator.grant_sql(&roles) {
        sqlx::raw_sql(sql).execute(&mut connection).await.unwrap();
    }
    let before = text(&mut connection, ACL).await;
    migrator.grant(&roles).await.unwrap();
    migrator.grant(&roles).await.unwrap();
    let after = text(&mut connection, ACL).await;
    run(&mut connection, r#"drop owned by "O""Brien; drop schema outbox cascade --""#).await.unwrap();
    run(&mut connection, r#"drop role "O""Brien; drop schema outbox cascade --""#).await.unwrap();
    assert!(before.is_some());
    assert_eq!(before, after);
}

/// Every right on the outbox, as one text.
const ACL: &str = "select string_agg(what, ' ' order by what) from (
  select relname || relacl::text from pg_class where relnamespace = 'outbox'::regnamespace and relacl is not null
  union all select attrelid::regclass || '.' || attname || attacl::text from pg_attribute a join pg_class c on c.oid = attrelid
    where relnamespace = 'outbox'::regnamespace and attacl is not null
  union all select oid::regprocedure || proacl::text from pg_proc where pronamespace = 'outbox'::regnamespace and proacl is not null
) acl(what)";
