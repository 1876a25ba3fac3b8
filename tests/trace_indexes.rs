//! The optional indexes: built beside an application that writes, repaired, dropped, and never anybody's error.

use std::process::Stdio;
use std::time::Duration;

use outboxd_testkit::postgres::Database;
use outboxd_testkit::relay::{Setup, eventually};
use serde_json::Value;
use sqlx::{Connection as _, PgConnection, SqliteConnection};

use crate::cli::{NOBODY, command};
use crate::grants::granted;
use crate::migrations::{installed, run, text, wait_until};
use crate::support::{BINARY, SOON};

const INDEXES: [&str; 5] =
    ["message_id", "message_correlation", "message_causation", "message_trace", "message_key"];

fn setup(url: &str) -> Setup {
    Setup::new(BINARY, url, NOBODY)
}

/// What was done to each index.
async fn actions(setup: &Setup, arguments: &[&str]) -> Vec<String> {
    let arguments = [&["migrate", "trace-indexes", "--output", "json"], arguments].concat();
    let done = setup.run_json(&arguments).await;
    let indexes = done["indexes"].as_array().unwrap();
    let names: Vec<_> = indexes.iter().map(|step| step["index"].as_str().unwrap()).collect();
    assert!(names.iter().zip(INDEXES).all(|(name, index)| name.ends_with(index)), "{names:?}");
    indexes.iter().map(|step| step["action"].as_str().unwrap().to_owned()).collect()
}

/// What the preflight says of them: severity and finding. Kafka is not there, so it fails as a whole.
async fn finding(setup: &Setup) -> (String, String) {
    let ran = setup.run(&["check", "--output", "json"]).await;
    let findings: Value = serde_json::from_slice(&ran.stdout).unwrap();
    let finding = findings.as_array().unwrap().iter().find(|finding| finding["check"] == "trace indexes");
    let finding = finding.unwrap_or_else(|| panic!("not among {findings:#}"));
    let word = |name: &str| finding[name].as_str().unwrap().to_owned();
    (word("severity"), word("found"))
}

/// The valid ones.
async fn valid(connection: &mut PgConnection) -> String {
    text(
        connection,
        "select coalesce(string_agg(x.relname, ' ' order by x.relname), '') from pg_index i join pg_class x on x.oid = i.indexrelid
         where i.indrelid = 'outbox.message'::regclass and i.indisvalid and obj_description(x.oid) like 'Serves trace: %'",
    )
    .await
    .unwrap()
}

fn all() -> String {
    let mut names = INDEXES;
    names.sort_unstable();
    names.join(" ")
}

#[tokio::test]
async fn the_trace_indexes_are_built_once_and_dropped_again_and_each_says_which_query_it_serves() {
    let database = installed().await;
    let setup = setup(&database.url());
    let mut connection = database.connect().await;
    assert!(finding(&setup).await.1.contains("none; they are optional"));
    let sql = setup.run_ok(&["migrate", "trace-indexes", "--dry-run"]).await;
    assert_eq!(valid(&mut connection).await, "", "a dry run builds nothing");
    assert_eq!(sql.matches("create index concurrently").count(), INDEXES.len(), "{sql}");
    assert_eq!(actions(&setup, &[]).await, ["build"; 5]);
    assert_eq!(valid(&mut connection).await, all());
    assert_eq!(finding(&setup).await, ("ok".into(), "all are there".into()));
    // A key that is larger than a B-tree takes.
    run(&mut connection, "insert into outbox.message (topic, key, payload) select 'orders', string_agg(md5(n::text), ''), '' from generate_series(1, 1000) n")
        .await
        .unwrap();
    assert_eq!(actions(&setup, &[]).await, ["nothing"; 5]);
    let sql = setup.run_ok(&["migrate", "trace-indexes", "--dry-run"]).await;
    assert!(sql.starts_with("-- nothing"), "{sql}");
    run(&mut connection, "drop index outbox.message_trace").await.unwrap();
    assert!(finding(&setup).await.1.starts_with("not there: message_trace;"));
    assert_eq!(actions(&setup, &[]).await, ["nothing", "nothing", "nothing", "build", "nothing"]);
    let sql = setup.run_ok(&["migrate", "trace-indexes", "--drop", "--dry-run"]).await;
    for statement in sql.split_inclusive(";\n") {
        run(&mut connection, statement).await.unwrap();
    }
    assert_eq!(actions(&setup, &["--drop"]).await, ["nothing"; 5]);
    assert_eq!(valid(&mut connection).await, "");
}

#[tokio::test]
async fn the_trace_indexes_of_another_schema_are_built_there() {
    let database = Database::create().await;
    let setup = setup(&database.url());
    let ran = setup.run(&["migrate", "trace-indexes"]).await;
    assert_eq!(ran.status.code(), Some(78));
    assert!(String::from_utf8_lossy(&ran.stderr).contains("run `outboxd migrate` first"), "{ran:?}");
    setup.run_ok(&["migrate", "--schema", "shop"]).await;
    assert_eq!(actions(&setup, &["--schema", "shop"]).await, ["build"; 5]);
    let mut connection = database.connect().await;
    assert!(text(&mut connection, "select to_regclass('shop.message_key')").await.is_some());
}

#[tokio::test]
async fn psql_builds_and_drops_the_trace_indexes_with_the_same_files() {
    let database = installed().await;
    let mut connection = database.connect().await;
    let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../migrations/trace-indexes");
    for (file, expected) in [("postgres.sql", all()), ("postgres-drop.sql", String::new())] {
        let output = std::process::Command::new("psql")
            .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", &database.url(), "-f"])
            .arg(directory.join(file))
            .output()
            .expect("psql is missing: install PostgreSQL's client programs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(valid(&mut connection).await, expected);
    }
}

#[tokio::test]
async fn no_writer_waits_while_a_trace_index_is_built_and_the_build_says_for_whom_it_waits() {
    let database = installed().await;
    let setup = setup(&database.url());
    let mut observer = database.connect().await;
    let mut slow = database.connect().await;
    run(&mut slow, "set application_name = 'nightly'; begin; insert into outbox.message (topic, payload) values ('orders', 'x')")
        .await
        .unwrap();
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("said");
    let environment = [
        ("OUTBOXD__DATABASE__URL", database.url()),
        ("OUTBOXD__KAFKA__BOOTSTRAP_SERVERS", NOBODY.to_owned()),
    ];
    let environment = environment.each_ref().map(|(name, value)| (*name, value.as_str()));
    let mut build = command(directory.path(), &environment, &["migrate", "trace-indexes"])
        .stderr(Stdio::from(std::fs::File::create(&log).unwrap()))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    wait_until(
        &mut observer,
        "select exists (select from pg_stat_progress_create_index where datname = current_database() and current_locker_pid > 0)",
    )
    .await;
    run(
        &mut observer,
        "set lock_timeout = '2s'; insert into outbox.message (topic, payload) values ('orders', 'y')",
    )
    .await
    .unwrap();
    eventually("the build says for whom it waits", SOON, async || {
        let said = std::fs::read_to_string(&log).unwrap();
        (said.contains("building message_id")
            && said.contains("the transaction of backend")
            && said.contains("(nightly)"))
        .then_some(())
    })
    .await;
    // A second one keeps its hands off what the first is at.
    let ran = setup.run(&["migrate", "trace-indexes"]).await;
    assert_eq!(ran.status.code(), Some(78));
    assert!(String::from_utf8_lossy(&ran.stderr).contains("is building an index"), "{ran:?}");
    let (severity, found) = finding(&setup).await;
    assert!(severity == "ok" && found.contains("being built by backend"), "{severity}: {found}");
    run(&mut slow, "commit").await.unwrap();
    let ended = tokio::time::timeout(SOON, tokio::task::spawn_blocking(move || build.wait())).await;
    assert!(ended.unwrap().unwrap().unwrap().success(), "{}", std::fs::read_to_string(&log).unwrap());
    assert_eq!(valid(&mut observer).await, all());
}

#[tokio::test]
async fn what_an_interrupted_build_left_is_found_and_built_anew() {
    let database = installed().await;
    let setup = setup(&database.url());
    let mut slow = database.connect().await;
    run(&mut slow, "begin; insert into outbox.message (topic, payload) values ('orders', 'x')")
        .await
        .unwrap();
    // Killed while it waits for that transaction: the server notices that its client is gone.
    let mut connection = database.connect().await;
    let mut child = tokio::process::Command::from(command(
        tempfile::tempdir().unwrap().path(),
        &[("OUTBOXD__DATABASE__URL", &database.url())],
        &["migrate", "trace-indexes"],
    ))
    .kill_on_drop(true)
    .stderr(Stdio::null())
    .spawn()
    .unwrap();
    wait_until(
        &mut connection,
        "select exists (select from pg_stat_progress_create_index where datname = current_database() and current_locker_pid > 0)",
    )
    .await;
    child.kill().await.unwrap();
    if text(&mut connection, "select current_setting('server_version_num')::int >= 140000").await.as_deref()
        == Some("true")
    {
        wait_until(&mut connection, "select not exists (select from pg_stat_progress_create_index where datname = current_database())").await;
    } else {
        run(&mut connection, "select pg_terminate_backend(pid) from pg_stat_progress_create_index where datname = current_database()")
            .await
            .unwrap();
        wait_until(&mut connection, "select not exists (select from pg_stat_progress_create_index where datname = current_database())").await;
    }
    let (severity, found) = finding(&setup).await;
    assert!(severity == "warning" && found.contains("no query uses them: message_id"), "{severity}: {found}");
    run(&mut slow, "rollback").await.unwrap();
    assert_eq!(actions(&setup, &[]).await, ["rebuild", "build", "build", "build", "build"]);
    assert_eq!(valid(&mut connection).await, all());
}

#[tokio::test]
async fn who_does_not_own_the_outbox_is_told_that_its_owner_builds_the_trace_indexes() {
    let granted = granted().await;
    for role in [&granted.relay, &granted.reader, &granted.writer] {
        let ran = setup(&granted.database.url_as(role)).run(&["migrate", "trace-indexes"]).await;
        let said = String::from_utf8_lossy(&ran.stderr);
        assert!(
            ran.status.code() == Some(78) && said.contains("connect as the owner of the outbox"),
            "{said}"
        );
    }
    let mut connection = granted.database.connect().await;
    assert_eq!(valid(&mut connection).await, "");
}

#[tokio::test]
async fn a_file_of_sqlite_has_the_same_command() {
    let directory = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", directory.path().join("shop.db").display());
    let setup = setup(&url);
    setup.run_ok(&["migrate"]).await;
    assert!(finding(&setup).await.1.contains("none; they are optional"));
    let sql = setup.run_ok(&["migrate", "trace-indexes", "--dry-run"]).await;
    assert_eq!(sql.matches("create index").count(), INDEXES.len(), "{sql}");
    assert_eq!(actions(&setup, &[]).await, ["build"; 5]);
    assert_eq!(finding(&setup).await, ("ok".into(), "all are there".into()));
    assert_eq!(actions(&setup, &[]).await, ["nothing"; 5]);
    // An application that writes keeps one index waiting, and not for ever.
    let mut writer = SqliteConnection::connect(&url).await.unwrap();
    sqlx::raw_sql("drop index outbox_message_key").execute(&mut writer).await.unwrap();
    let transaction = writer.begin_with("begin immediate").await.unwrap();
    let (done, ()) = tokio::join!(actions(&setup, &[]), async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        transaction.commit().await.unwrap();
    });
    assert_eq!(done[4], "build");
    assert_eq!(actions(&setup, &["--drop"]).await, ["drop"; 5]);
    let ran = setup.run(&["migrate", "trace-indexes", "--schema", "x"]).await;
    assert_eq!(ran.status.code(), Some(64), "{ran:?}");
}
