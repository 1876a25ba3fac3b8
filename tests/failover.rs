//! A streaming standby is promoted while the relay runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use outboxd_testkit::checker;
use outboxd_testkit::postgres::{Options, Server};
use outboxd_testkit::relay::eventually;
use outboxd_testkit::shared;
use outboxd_testkit::workload::Workload;
use sqlx::{Connection, PgConnection};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::support::{IN_FLIGHT, Place, SOON, emit_on};

/// One address for whichever server is the primary, as a virtual IP or a DNS name would be.
pub(crate) struct Address {
    port: u16,
    primary: Arc<AtomicU16>,
    _tasks: JoinSet<()>,
}

impl Address {
    pub(crate) async fn of(primary: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let primary = Arc::new(AtomicU16::new(primary));
        let target = Arc::clone(&primary);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut links = JoinSet::new();
            while let Ok((mut client, _)) = listener.accept().await {
                let target = target.load(Ordering::Acquire);
                links.spawn(async move {
                    if let Ok(mut server) = TcpStream::connect(("127.0.0.1", target)).await {
                        // Either side may go away at any time: that is what is tested.
                        tokio::io::copy_bidirectional(&mut client, &mut server).await.ok();
                    }
                });
            }
        });
        Self { port, primary, _tasks: tasks }
    }

    /// Whoever connects from now on reaches this server.
    pub(crate) fn leads_to(&self, server: &Server) {
        self.primary.store(server.port(), Ordering::Release);
    }

    pub(crate) fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }
}

/// Whether the standby has all that the primary has written until now.
pub(crate) async fn has_it_all(standby: &Server, primary: &Server) -> bool {
    let mut connection = PgConnection::connect(&primary.url("postgres")).await.unwrap();
    let written: String = sqlx::query_scalar("select pg_current_wal_insert_lsn()::text")
        .fetch_one(&mut connection)
        .await
        .unwrap();
    let mut connection = PgConnection::connect(&standby.url("postgres")).await.unwrap();
    sqlx::query_scalar("select coalesce(pg_last_wal_replay_lsn() >= $1::text::pg_lsn, false)")
        .bind(written)
        .fetch_one(&mut connection)
        .await
        .unwrap()
}

async fn high(url: &str) -> i64 {
    let mut connection = PgConnection::connect(url).await.unwrap();
    sqlx::query_scalar("select high from outbox.cursor").fetch_one(&mut connection).await.unwrap()
}

/// D1, D3. No operator is needed, and nothing is lost or published twice by history.
#[tokio::test]
async fn a_promoted_standby_loses_nothing_and_needs_no_operator() {
    let mut primary = Server::start(Options::default()).await.unwrap();
    let mut standby = primary.standby().await.unwrap();
    let place = Place::install(&primary.url("postgres"), &shared::kafka(), "promoted").await;
    let address = Address::of(primary.port()).await;
    let mut relay = place.little_in_flight().set("database.url", address.url()).start().await;
    relay.leads(SOON).await;
    let writing = Workload::new(std::slice::from_ref(&place.topic), 5).start(&address.url()).await;
    relay.wait_until("some are dispatched", SOON, |m| m.sum("outboxd_dispatched_total", &[]) > 100.0).await;
    writing.stop().await;
    checker::dealt_with(&primary.url("postgres"), SOON).await;
    let settled = high(&primary.url("postgres")).await;
    eventually("the standby has it all", SOON, async || {
        (has_it_all(&standby, &primary).await && high(&standby.url("postgres")).await == settled)
            .then_some(())
    })
    .await;
    primary.kill_9().await.unwrap();
    standby.promote().await.unwrap();
    address.leads_to(&standby);
    let writing = Workload::new(std::slice::from_ref(&place.topic), 6).start(&address.url()).await;
    relay
        .wait_until("the new primary is relayed", SOON, |m| m.sum("outboxd_dispatched_total", &[]) > 200.0)
        .await;
    writing.stop().await;
    let place = Place { url: standby.url("postgres"), ..place };
    // What was in flight at the kill; history is not repeated.
    place.account().await.assert_all_published(IN_FLIGHT);
}

/// D1, D2, D3. With a synchronous standby nothing that was visible is gone: writers and relay go on through the promotion, and the
/// balance is as strict as without one.
#[tokio::test]
async fn a_synchronous_standby_that_is_promoted_under_load_loses_and_invents_nothing() {
    let mut primary = Server::start(Options::default()).await.unwrap();
    let mut standby = primary.standby().await.unwrap();
    let place = Place::install(&primary.url("postgres"), &shared::kafka(), "synchronous").await;
    let mut operator = PgConnection::connect(&primary.url("postgres")).await.unwrap();
    // Here alone: the new primary has no standby to wait for.
    for sql in ["alter system set synchronous_standby_names = '*'", "select pg_reload_conf()"] {
        sqlx::raw_sql(sql).execute(&mut operator).await.unwrap();
    }
    let address = Address::of(primary.port()).await;
    let mut relay = place.little_in_flight().set("database.url", address.url()).start().await;
    relay.leads(SOON).await;
    let writing = Workload::new(std::slice::from_ref(&place.topic), 7).start(&address.url()).await;
    relay.wait_until("some are dispatched", SOON, |m| m.sum("outboxd_dispatched_total", &[]) > 200.0).await;
    primary.kill_9().await.unwrap();
    standby.promote().await.unwrap();
    address.leads_to(&standby);
    relay
        .wait_until("the new primary is relayed", SOON, |m| m.sum("outboxd_dispatched_total", &[]) > 600.0)
        .await;
    writing.stop().await;
    let place = Place { url: standby.url("postgres"), ..place };
    place.account().await.assert_all_published(IN_FLIGHT);
}

/// D1. What the lagging standby never had is gone with the old primary, published or not; what the new primary has is
/// published, although it draws places in the outbox that the relay has seen before.
#[tokio::test]
async fn a_lagging_standby_that_is_promoted_loses_nothing_that_it_has() {
    let mut primary = Server::start(Options::default()).await.unwrap();
    let mut standby = primary.standby().await.unwrap();
    let place = Place::install(&primary.url("postgres"), &shared::kafka(), "lagging").await;
    let address = Address::of(primary.port()).await;
    let mut relay = place.little_in_flight().set("database.url", address.url()).start().await;
    relay.leads(SOON).await;
    let mut application = PgConnection::connect(&primary.url("postgres")).await.unwrap();
    for nth in 0..50 {
        emit_on(&mut application, &place.topic, "early", &format!("{{\"n\":{nth}}}")).await;
    }
    checker::dealt_with(&primary.url("postgres"), SOON).await;
    let settled = high(&primary.url("postgres")).await;
    eventually("the standby has these", SOON, async || {
        (high(&standby.url("postgres")).await == settled).then_some(())
    })
    .await;
    standby.stop_following().await.unwrap();
    for nth in 0..50 {
        emit_on(&mut application, &place.topic, "gone", &format!("{{\"n\":{nth}}}")).await;
    }
    checker::dealt_with(&primary.url("postgres"), SOON).await;
    primary.kill_9().await.unwrap();
    standby.promote().await.unwrap();
    address.leads_to(&standby);
    let mut application = PgConnection::connect(&standby.url("postgres")).await.unwrap();
    for nth in 0..50 {
        emit_on(&mut application, &place.topic, "new", &format!("{{\"n\":{nth}}}")).await;
    }
    let place = Place { url: standby.url("postgres"), ..place };
    checker::dealt_with(&place.url, Duration::from_secs(60)).await;
    let account = checker::account(&place.url, &place.bootstrap, std::slice::from_ref(&place.topic)).await;
    assert_eq!((account.lost.count, account.stuck.count, account.inversions.count), (0, 0, 0), "{account}");
    assert_eq!(account.held, 0, "{account}");
}
