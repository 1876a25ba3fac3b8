//! The link to PostgreSQL, encrypted and verified.

use outboxd_testkit::postgres::server::PASSWORD;
use outboxd_testkit::postgres::{Options, Server};
use outboxd_testkit::relay::Setup;
use outboxd_testkit::shared;
use sqlx::{Connection, PgConnection};

use crate::support::{BINARY, Place, SOON, certificates};

#[tokio::test]
async fn every_session_is_encrypted_and_a_server_that_the_authority_does_not_vouch_for_gets_no_password() {
    let (authority, certificate, key) = certificates();
    let (other_authority, _, _) = certificates();
    let server = Server::start(Options::default().scram().tls(&certificate, &key)).await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let url = |name: &str, authority: &str| {
        let file = directory.path().join(name);
        std::fs::write(&file, authority).unwrap();
        format!("{}?sslmode=verify-full&sslrootcert={}", server.url("postgres"), file.display())
    };
    let place = Place::install(&url("authority.pem", &authority), &shared::kafka(), "tls").await;
    let mut relay = place.setup.start().await;
    relay.leads(SOON).await;
    place.emit("k", "1").await;
    relay.wait_until("it is dispatched", SOON, |m| m.sum("outboxd_dispatched_total", &[]) == 1.0).await;
    let mut connection = PgConnection::connect(&place.url).await.unwrap();
    let (sessions, encrypted): (i64, i64) = sqlx::query_as(
        "select count(*), count(*) filter (where s.ssl) from pg_stat_activity a join pg_stat_ssl s using (pid)
         where a.application_name like 'outboxd%'",
    )
    .fetch_one(&mut connection)
    .await
    .unwrap();
    assert!(sessions >= 3 && sessions == encrypted, "{encrypted} of {sessions} sessions");

    let stranger = Setup::new(BINARY, &url("other.pem", &other_authority), &shared::kafka());
    let refused = stranger.run(&["status"]).await;
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("certificate"), "{said}");
    assert!(!said.contains(PASSWORD), "{said}");
    place.account().await.assert_all_published(0);
    relay.expect_no_surprises(&[]);
}
