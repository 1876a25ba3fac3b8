//! Installing the outbox: by outboxd, by psql, twice, at the same time, in another schema, as an ordinary role.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use outboxd_postgres::migrate::{MIGRATIONS, MigrateError, Migrator, SCHEMA_VERSION};
use outboxd_postgres::schema::SchemaName;
use outboxd_testkit::postgres::Database;
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, PgConnection, Row};
use tokio::time::Instant;

/// A migrator for a schema of a test's database.
pub(crate) fn migrator(url: &str, schema: &str) -> Migrator {
    let options: PgConnectOptions = url.parse().expect("the url of a test's database");
    Migrator::new(options, schema.parse().expect("a schema name of a test"))
}

/// A fresh database with an outbox in schema `outbox`.
pub(crate) async fn installed() -> Database {
    let database = Database::create().await;
    migrator(&database.url(), "outbox").apply().await.expect("install the outbox");
    database
}

/// Runs statements that a test made up.
pub(crate) async fn run(connection: &mut PgConnection, sql: &str) -> Result<(), sqlx::Error> {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(connection).await.map(|_| ())
}

/// The first column of the first row, as text.
pub(crate) async fn text(connection: &mut PgConnection, sql: &str) -> Option<String> {
    sqlx::query(AssertSqlSafe(format!("select ({sql})::text")))
        .fetch_one(connection)
        .await
        .unwrap_or_else(|error| panic!("{sql}: {error}"))
        .get(0)
}

/// Polls until a query says true.
pub(crate) async fn wait_until(observer: &mut PgConnection, query: &str) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while text(observer, query).await.as_deref() != Some("true") {
        assert!(Instant::now() < deadline, "never true: {query}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn migrating_twice_changes_nothing_the_second_time() {
    let database = Database::create().await;
    let migrator = migrator(&database.url(), "outbox");
    assert_eq!(migrator.installed_version().await.unwrap(), None);
    let first = migrator.apply().await.unwrap();
    assert_eq!(
        first.iter().map(|done| done.version).collect::<Vec<_>>(),
        (1..=SCHEMA_VERSION).collect::<Vec<_>>()
    );
    let mut connection = database.connect().await;
    let stamps = "select string_agg(applied_at::text, ',' order by version) from outbox.migration";
    let before = text(&mut connection, stamps).await;
    assert!(migrator.apply().await.unwrap().is_empty());
    assert!(migrator.plan().await.unwrap().is_empty());
    assert_eq!(text(&mut connection, stamps).await, before);
    assert_eq!(migrator.installed_version().await.unwrap(), Some(SCHEMA_VERSION));
}

#[tokio::test]
async fn migrations_started_at_the_same_time_do_the_work_once() {
    let database = Database::create().await;
    let url = database.url();
    let mut all = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let migrator = migrator(&url, "outbox");
        all.spawn(async move { migrator.apply().await.unwrap().len() });
    }
    let applied: usize = all.join_all().await.into_iter().sum();
    assert_eq!(applied, MIGRATIONS.len());
}

#[tokio::test]
async fn a_dry_run_returns_the_sql_that_does_it_and_changes_nothing() {
    let database = Database::create().await;
    let migrator = migrator(&database.url(), "shop");
    let plan = migrator.plan().await.unwrap();
    assert_eq!(plan.len(), MIGRATIONS.len());
    let mut connection = database.connect().await;
    assert_eq!(text(&mut connection, "select to_regnamespace('shop')").await, None);
    for pending in &plan {
        sqlx::raw_sql(pending.sql.clone()).execute(&mut connection).await.unwrap();
    }
    assert!(migrator.plan().await.unwrap().is_empty(), "what was applied by hand counts as applied");
    assert!(migrator.apply().await.unwrap().is_empty());
}

#[tokio::test]
async fn psql_applies_the_files_and_outboxd_accepts_them() {
    let database = Database::create().await;
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../migrations/postgres");
    for file in ["0001_outbox.sql", "0002_delivery.sql", "0003_trace.sql"] {
        let output = Command::new("psql")
            .args(["-X", "-1", "-q", "-v", "ON_ERROR_STOP=1", "-d", &database.url(), "-f"])
            .arg(directory.join(file))
            .output()
            .expect("psql is missing: install PostgreSQL's client programs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let migrator = migrator(&database.url(), "outbox");
    assert!(migrator.apply().await.unwrap().is_empty());
    assert_eq!(migrator.installed_version().await.unwrap(), Some(SCHEMA_VERSION));
    let mut connection = database.connect().await;
    run(&mut connection, "select outbox.emit(topic => 'orders', payload => 'x')").await.unwrap();
}

#[tokio::test]
async fn who_had_a_part_before_a_migration_has_it_afterwards() {
    let database = Database::create().await;
    let mut connection = database.connect().await;
    run(&mut connection, MIGRATIONS[0].sql).await.unwrap();
    // A name that needs quotes, and a grant to everybody.
    let roles = ["writer \"w\"", "relay", "reader"].map(|part| format!("{part} of {}", database.name()));
    let [writer, relay, reader] = roles.each_ref().map(|role| format!("\"{}\"", role.replace('"', "\"\"")));
    run(
        &mut connection,
        &format!(
            "create role {writer}; create role {relay}; create role {reader};
             grant usage on schema outbox to {writer}, {relay}, {reader};
             grant insert (topic, payload) on outbox.message to {writer};
             grant execute on function
               outbox.emit(text, bytea, text, jsonb, integer, text, text, text, text, text, uuid) to {writer}, public;
             grant select, delete on outbox.held to {relay};
             grant select on outbox.held to {reader}"
        ),
    )
    .await
    .unwrap();
    migrator(&database.url(), "outbox").apply().await.unwrap();
    let may = async |connection: &mut PgConnection, sql: &str| {
        assert_eq!(text(connection, sql).await.as_deref(), Some("true"), "{sql}");
    };
    let emit = "outbox.emit(text, jsonb, text, jsonb, integer, text, text, text, text, text, uuid, timestamptz, text)";
    for sql in [
        format!("select has_function_privilege('{}', '{emit}', 'execute')::text", roles[0]),
        format!("select has_function_privilege('{}', '{emit}', 'execute')::text", roles[2]),
        format!(
            "select has_function_privilege('{}', 'outbox.cancel(uuid, text)', 'execute')::text",
            roles[0]
        ),
        format!(
            "select has_column_privilege('{}', 'outbox.message', 'deliver_after', 'insert')::text",
            roles[0]
        ),
        format!("select has_table_privilege('{}', 'outbox.scheduled', 'delete')::text", roles[1]),
        format!("select has_table_privilege('{}', 'outbox.scheduled', 'select')::text", roles[2]),
        format!("select (not has_table_privilege('{}', 'outbox.scheduled', 'delete'))::text", roles[2]),
        format!(
            "select (not has_column_privilege('{}', 'outbox.held_edit', 'payload', 'select'))::text",
            roles[2]
        ),
    ] {
        may(&mut connection, &sql).await;
    }
    let drop = format!("drop owned by {writer}, {relay}, {reader}; drop role {writer}, {relay}, {reader}");
    run(&mut connection, &drop).await.unwrap();
}

#[tokio::test]
async fn a_file_that_changed_since_it_was_applied_is_refused_by_name() {
    let database = installed().await;
    let mut connection = database.connect().await;
    assert_eq!(
        text(&mut connection, "select checksum from outbox.migration where version = 1").await,
        Some(MIGRATIONS[0].checksum())
    );
    run(&mut connection, "update outbox.migration set checksum = repeat('0', 64) where version = 1")
        .await
        .unwrap();
    let error = migrator(&database.url(), "outbox").apply().await.unwrap_err();
    assert!(matches!(error, MigrateError::Checksum { version: 1, .. }), "{error:?}");
    assert!(error.to_string().contains("migration 1 (outbox) was applied from another text"), "{error}");
}

#[tokio::test]
async fn an_outbox_of_a_later_version_is_refused_by_name() {
    let database = installed().await;
    let mut connection = database.connect().await;
    run(&mut connection, "insert into outbox.migration (version, name) values (99, 'from_the_future')")
        .await
        .unwrap();
    let migrator = migrator(&database.url(), "outbox");
    for error in [migrator.plan().await.unwrap_err(), migrator.apply().await.unwrap_err()] {
        assert!(error.to_string().contains("migration 99 (from_the_future)"), "{error}");
        assert!(error.to_string().contains("use a newer one"), "{error}");
    }
    assert_eq!(migrator.installed_version().await.unwrap(), Some(99));
}

#[tokio::test]
async fn outboxes_in_several_schemas_do_not_meet() {
    let database = Database::create().await;
    let mut connection = database.connect().await;
    // A reserved word, the longest name, and the default one.
    let longest = "x".repeat(63);
    for schema in ["order", longest.as_str(), "outbox"] {
        migrator(&database.url(), schema).apply().await.unwrap();
        let quoted = format!("\"{schema}\"");
        run(
            &mut connection,
            &format!(
                "begin; select set_config('outbox.correlation_id', 'c-{schema}', true);
                 insert into {quoted}.message (topic, payload) values ('orders', 'plain');
                 select {quoted}.emit('orders', 'emitted'); commit"
            ),
        )
        .await
        .unwrap();
        assert_eq!(
            text(
                &mut connection,
                &format!("select count(*) from {quoted}.message where correlation_id = 'c-{schema}'")
            )
            .await,
            Some("2".to_owned()),
            "settings keep their names in schema {schema}"
        );
        let refused =
            run(&mut connection, &format!("insert into {quoted}.message (topic, payload) values ('', 'x')"))
                .await;
        assert!(refused.unwrap_err().to_string().contains("topic is empty"), "{schema}");
        assert_eq!(
            text(&mut connection, &format!("select count(*) from {quoted}.cursor")).await,
            Some("1".to_owned())
        );
    }
    assert!(matches!("Outbox".parse::<SchemaName>(), Err(error) if error.to_string().contains("Outbox")));
}

#[tokio::test]
async fn an_ordinary_role_installs_the_outbox() {
    let database = Database::create().await;
    let mut connection = database.connect().await;
    let creator = database.role("creator").await;
    run(&mut connection, &format!("grant create on database {} to {creator}", database.name()))
        .await
        .unwrap();
    migrator(&database.url_as(&creator), "outbox").apply().await.unwrap();

    let owner = database.role("owner").await;
    run(&mut connection, &format!("create schema given authorization {owner}")).await.unwrap();
    migrator(&database.url_as(&owner), "given").apply().await.unwrap();

    let nobody = database.role("nobody").await;
    let error = migrator(&database.url_as(&nobody), "refused").apply().await.unwrap_err();
    let told = error.to_string();
    assert!(std::error::Error::source(&error).is_none(), "the cause is in the text once");
    assert!(
        told.contains("apply migration 1 (outbox): the server answered 42501: permission denied"),
        "{told}"
    );
    assert!(told.contains("grant create on database") && !told.contains("at line"), "{told}");
    assert_eq!(text(&mut connection, "select to_regnamespace('refused')").await, None);
}

#[tokio::test]
async fn a_migration_that_fails_leaves_nothing_behind() {
    let database = Database::create().await;
    let mut connection = database.connect().await;
    run(&mut connection, "create schema outbox; create table outbox.held ()").await.unwrap();
    let error = migrator(&database.url(), "outbox").apply().await.unwrap_err();
    let told = error.to_string();
    assert!(
        told.contains("apply migration 1 (outbox)") && told.contains("choose another one with --schema"),
        "{told}"
    );
    let nowhere = migrator("postgres://nobody@127.0.0.1:1/nothing", "outbox").apply().await.unwrap_err();
    assert!(matches!(nowhere, MigrateError::Unavailable { .. }), "{nowhere:?}");
    assert!(nowhere.to_string().contains("connect to 127.0.0.1:1/nothing"), "{nowhere}");
    assert_eq!(
        text(
            &mut connection,
            "select string_agg(relname, ',') from pg_class where relnamespace = 'outbox'::regnamespace"
        )
        .await,
        Some("held".to_owned())
    );
}

#[tokio::test]
async fn what_is_installed_keeps_its_rules() {
    let database = installed().await;
    let mut connection = database.connect().await;
    let none = async |connection: &mut PgConnection, sql: &str| {
        assert_eq!(text(connection, sql).await, None, "{sql}");
    };
    // Every index says which query it serves, every table what it is for.
    none(
        &mut connection,
        "select string_agg(indexrelid::regclass::text, ', ') from pg_index i join pg_class c on c.oid = i.indexrelid
         where c.relnamespace = 'outbox'::regnamespace
           and coalesce(obj_description(i.indexrelid, 'pg_class'), '') !~ '^(Serves|Keeps) '",
    )
    .await;
    none(
        &mut connection,
        "select string_agg(relname, ', ') from pg_class where relnamespace = 'outbox'::regnamespace
           and relkind in ('r', 'v') and obj_description(oid, 'pg_class') is null",
    )
    .await;
    // Functions find nothing but what they name, and run with the rights of their caller: but for cancel, which answers a question
    // about intents that a writer may not read.
    none(
        &mut connection,
        "select string_agg(oid::regprocedure::text, ', ') from pg_proc where pronamespace = 'outbox'::regnamespace
           and (prosecdef <> (proname in ('cancel', 'canary')) or proconfig is null or not proconfig @> '{\"search_path=pg_catalog, pg_temp\"}')",
    )
    .await;
    // xid is drawn first and seq last, one at a time; what was added later has no default to evaluate.
    assert_eq!(
        text(
            &mut connection,
            "select (array_agg(attname::text order by attnum))[1] || ' ' || (array_agg(attname::text order by attnum desc))[1]
             from pg_attribute where attrelid = 'outbox.message'::regclass and attnum > 0 and not attisdropped
               and (atthasdef or attidentity <> '')",
        )
        .await
        .as_deref(),
        Some("xid seq")
    );
    assert_eq!(
        text(
            &mut connection,
            "select seqcache from pg_sequence where seqrelid = pg_get_serial_sequence('outbox.message', 'seq')::regclass",
        )
        .await
        .as_deref(),
        Some("1")
    );
    // The first cursor has seen nothing, so nothing that is written from now on is behind it.
    assert_eq!(
        text(
            &mut connection,
            "select (epoch = 0 and high = 0 and pos is null and system_identifier is null
               and xid_bound >= pg_snapshot_xmin(seen)) from outbox.cursor",
        )
        .await
        .as_deref(),
        Some("true")
    );
    let second = run(
        &mut connection,
        "insert into outbox.cursor (epoch, high, seen, xid_bound) values (0, 0, pg_current_snapshot(), '3')",
    )
    .await;
    assert!(second.is_err(), "there is one cursor");
}
