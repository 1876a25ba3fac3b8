//! Installing the outbox.

use super::*;
use crate::migrate::{MIGRATIONS, MigrateError, SCHEMA_VERSION};

fn fresh() -> (TempDir, Migrator, SqliteConfig) {
    let directory = tempfile::tempdir().unwrap();
    let config = SqliteConfig::new(directory.path().join("shop.db"));
    (directory, Migrator::new(config.clone()), config)
}

#[tokio::test]
async fn a_plan_changes_nothing_and_applying_twice_does_nothing() {
    let (_directory, migrator, config) = fresh();
    assert_eq!(migrator.plan().await.unwrap(), MIGRATIONS);
    assert!(!config.path.exists(), "a plan creates no file");
    assert_eq!(migrator.apply().await.unwrap(), MIGRATIONS);
    assert_eq!(migrator.installed_version().await.unwrap(), Some(SCHEMA_VERSION));
    assert_eq!(migrator.plan().await.unwrap(), []);
    assert_eq!(migrator.apply().await.unwrap(), []);
}

#[tokio::test]
async fn the_tables_of_the_application_are_left_alone() {
    let (_directory, migrator, config) = fresh();
    let mut application =
        SqliteConnectOptions::new().filename(&config.path).create_if_missing(true).connect().await.unwrap();
    execute(&mut application, "create table orders (id integer primary key); insert into orders values (7)")
        .await
        .unwrap();
    assert_eq!(migrator.installed_version().await.unwrap(), None);
    assert_eq!(migrator.plan().await.unwrap(), MIGRATIONS);
    migrator.apply().await.unwrap();
    let orders: i64 = sqlx::query_scalar("select id from orders").fetch_one(&mut application).await.unwrap();
    assert_eq!(orders, 7);
    let foreign: i64 = sqlx::query_scalar(
        "select count(*) from sqlite_schema where type = 'table' and name not like 'outbox\\_%' escape '\\'
           and name not like 'sqlite\\_%' escape '\\'",
    )
    .fetch_one(&mut application)
    .await
    .unwrap();
    assert_eq!(foreign, 1, "only the application's own");
}

#[tokio::test]
async fn several_processes_may_migrate_at_once() {
    let (_directory, migrator, _) = fresh();
    let attempts = (0..8).map(|_| migrator.apply());
    let applied = futures_util::future::try_join_all(attempts).await.unwrap();
    assert_eq!(applied.iter().map(Vec::len).sum::<usize>(), MIGRATIONS.len(), "each migration once");
}

#[tokio::test]
async fn a_file_that_was_applied_by_hand_is_recognised() {
    let (_directory, migrator, config) = fresh();
    let mut application =
        SqliteConnectOptions::new().filename(&config.path).create_if_missing(true).connect().await.unwrap();
    for migration in MIGRATIONS {
        execute(&mut application, migration.sql).await.unwrap();
    }
    assert_eq!(migrator.installed_version().await.unwrap(), Some(SCHEMA_VERSION));
    assert_eq!(migrator.apply().await.unwrap(), []);
}

#[tokio::test]
async fn a_changed_file_and_a_newer_outbox_are_refused() {
    let (_directory, migrator, config) = fresh();
    migrator.apply().await.unwrap();
    let mut application = application(&config.path).await;
    execute(&mut application, "update outbox_migration set checksum = 'other'").await.unwrap();
    assert!(matches!(migrator.apply().await, Err(MigrateError::Changed { version: 1, .. })));
    execute(&mut application, "update outbox_migration set checksum = null").await.unwrap();
    execute(&mut application, "insert into outbox_migration (version, name) values (7, 'later')")
        .await
        .unwrap();
    assert!(matches!(migrator.plan().await, Err(MigrateError::Newer { installed: 7, .. })));
}

#[tokio::test]
async fn a_migration_that_fails_leaves_nothing_behind() {
    let (_directory, migrator, config) = fresh();
    let mut application =
        SqliteConnectOptions::new().filename(&config.path).create_if_missing(true).connect().await.unwrap();
    // The last table of the migration is in the way.
    execute(&mut application, "create table outbox_held_action (mine text)").await.unwrap();
    assert!(matches!(migrator.apply().await, Err(MigrateError::Database { .. })));
    let tables: i64 = sqlx::query_scalar("select count(*) from sqlite_schema where name like 'outbox%'")
        .fetch_one(&mut application)
        .await
        .unwrap();
    assert_eq!(tables, 1);
}

#[tokio::test]
async fn a_database_that_does_not_store_utf8_is_refused() {
    let (_directory, migrator, config) = fresh();
    let mut application =
        SqliteConnectOptions::new().filename(&config.path).create_if_missing(true).connect().await.unwrap();
    execute(&mut application, "pragma encoding = 'UTF-16le'; create table orders (id integer primary key)")
        .await
        .unwrap();
    assert!(matches!(migrator.apply().await, Err(MigrateError::Encoding { .. })));
}
