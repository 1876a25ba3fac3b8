use std::time::Duration;

use sqlx::{Connection, PgConnection, Row, raw_sql};
use tokio::time::timeout;

use super::*;

async fn count(url: &str) -> i64 {
    let mut connection = PgConnection::connect(url).await.unwrap();
    let row = sqlx::query("select count(*) from t").fetch_one(&mut connection).await.unwrap();
    row.get(0)
}

async fn write(url: &str, sql: &'static str) {
    raw_sql(sql).execute(&mut PgConnection::connect(url).await.unwrap()).await.unwrap();
}

#[tokio::test]
async fn a_killed_server_comes_back_on_its_port_with_what_was_committed() {
    let mut server = Server::start(Options::default()).await.unwrap();
    let url = server.url("postgres");
    write(&url, "create table t as select generate_series(1, 10)").await;
    let port = server.port();
    server.kill_9().await.unwrap();
    assert!(PgConnection::connect(&url).await.is_err());
    server.start_again().await.unwrap();
    assert_eq!((server.port(), count(&url).await), (port, 10));
    server.stop(Mode::Fast).await.unwrap();
    server.start_again().await.unwrap();
    assert_eq!(count(&url).await, 10);
}

#[tokio::test]
async fn a_paused_server_answers_nothing_until_it_is_resumed() {
    let mut server = Server::start(Options::default().setting("work_mem", "5MB")).await.unwrap();
    let mut connection = PgConnection::connect(&server.url("postgres")).await.unwrap();
    server.pause().unwrap();
    let asked = async { raw_sql("create table t (n int)").execute(&mut connection).await };
    assert!(timeout(Duration::from_millis(300), asked).await.is_err());
    server.resume().unwrap();
    wait::until("the table is there", Duration::from_secs(10), || async {
        let mut connection = PgConnection::connect(&server.url("postgres")).await?;
        Ok(raw_sql("select from t").execute(&mut connection).await.is_ok().then_some(()))
    })
    .await
    .unwrap();
    server.settings(&[("work_mem", "7MB")]).unwrap();
    wait::until("the setting is changed", Duration::from_secs(10), || async {
        let mut connection = PgConnection::connect(&server.url("postgres")).await?;
        let row = sqlx::query("show work_mem").fetch_one(&mut connection).await?;
        Ok((row.get::<String, _>(0) == "7MB").then_some(()))
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_standby_follows_lags_and_takes_writes_once_promoted() {
    let mut primary = Server::start(Options::default().scram()).await.unwrap();
    let url = primary.url("postgres");
    write(&url, "create table t as select generate_series(1, 10)").await;
    let mut standby = primary.standby().await.unwrap();
    let standby_url = standby.url("postgres");
    write(&url, "insert into t values (11)").await;
    wait::until("the standby has followed", Duration::from_secs(10), || async {
        Ok((count(&standby_url).await == 11).then_some(()))
    })
    .await
    .unwrap();
    standby.stop_following().await.unwrap();
    write(&url, "insert into t values (12)").await;
    primary.kill_9().await.unwrap();
    standby.promote().await.unwrap();
    write(&standby_url, "insert into t values (-12)").await;
    assert_eq!(count(&standby_url).await, 12);
}
