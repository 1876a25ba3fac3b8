//! Canaries: the whole path, measured by the relay itself.

use std::time::Duration;

use outboxd_testkit::kafka::{self, Broker};
use outboxd_testkit::postgres::Database;
use outboxd_testkit::shared;

use crate::outage::OUTAGE_LINES;
use crate::support::{Place, SOON};

/// With the relay's rights, which write no intent.
#[tokio::test]
async fn a_canary_goes_the_whole_way_and_fails_while_kafka_is_frozen() {
    let broker = Broker::start(kafka::Options::default()).await.unwrap();
    let database = Database::create().await;
    let place = Place::install(&database.url(), &broker.bootstrap(), "canary").await;
    let role = database.role("relay").await;
    place.setup.run_ok(&["migrate", "grants", "--relay", &role]).await;
    let mut relay = place
        .setup
        .clone()
        .set("database.url", database.url_as(&role))
        .set("canary.every_s", 1)
        .set("canary.topic", &place.topic)
        .set("relay.outage_after_ms", 2_000)
        .start()
        .await;
    relay.wait_until("canaries come", SOON, |m| m.sum("outboxd_canary_seconds_count", &[]) >= 2.0).await;
    let metrics = relay.metrics().await.unwrap();
    assert!(metrics.sum("outboxd_canary_age_seconds", &[]) < 30.0, "{metrics}");

    broker.pause().unwrap();
    let failing = |m: &outboxd_testkit::relay::Metrics| m.sum("outboxd_canary_failures_total", &[]) >= 3.0;
    let metrics = relay.wait_until("they fail", SOON, failing).await;
    let seen = metrics.sum("outboxd_canary_seconds_count", &[]);
    assert!(metrics.sum("outboxd_canary_age_seconds", &[]) >= 2.0, "{metrics}");
    broker.resume().unwrap();
    relay
        .wait_until("they come again", SOON, |m| m.sum("outboxd_canary_seconds_count", &[]) >= seen + 2.0)
        .await;
    // One was on its way all the time.
    let mut connection = database.connect().await;
    let emitted: i64 = sqlx::query_scalar("select count(*) from outbox.message where topic = $1")
        .bind(&place.topic)
        .fetch_one(&mut connection)
        .await
        .unwrap();
    let metrics = relay.metrics().await.unwrap();
    let counted = metrics.sum("outboxd_canary_seconds_count", &[]) + 3.0;
    assert!(f64::from(i32::try_from(emitted).unwrap()) <= counted, "{emitted} canaries, {metrics}");
    assert!(relay.terminate(SOON).await.success());
    relay.expect_no_surprises(&[&OUTAGE_LINES[..], &["a canary did not come"]].concat());
    assert!(place.setup.run(&["verify"]).await.status.success());
}

/// Somebody discarded it, for example, or it went to a partition that is not read; here it is put off for a day.
#[tokio::test]
async fn a_canary_that_never_comes_is_given_up_and_another_one_is_sent() {
    let database = Database::create().await;
    let place = Place::install(&database.url(), &shared::kafka(), "canary-lost").await;
    let mut connection = database.connect().await;
    let put_off = "create function put_off() returns trigger language plpgsql as $$
        begin new.deliver_after := now() + interval '1 day'; return new; end $$;
        create trigger put_off before insert on outbox.message for each row execute function put_off()";
    sqlx::raw_sql(put_off).execute(&mut connection).await.unwrap();
    let setup = place.setup.clone().set("canary.every_s", 1).set("canary.topic", &place.topic);
    let mut relay = setup.start().await;
    relay.wait_until("it is missed", SOON, |m| m.sum("outboxd_canary_failures_total", &[]) >= 2.0).await;
    sqlx::raw_sql("drop trigger put_off on outbox.message").execute(&mut connection).await.unwrap();
    let others_come = |m: &outboxd_testkit::relay::Metrics| m.sum("outboxd_canary_seconds_count", &[]) >= 2.0;
    let metrics = relay.wait_until("others come", 2 * SOON, others_come).await;
    assert!(metrics.sum("outboxd_canary_failures_total", &[]) >= 20.0, "{metrics}");
    assert!(relay.terminate(SOON).await.success());
    relay.expect_no_surprises(&["a canary did not come"]);
}

#[tokio::test]
async fn a_canary_is_not_emitted_for_a_topic_that_does_not_exist() {
    let database = Database::create().await;
    let place = Place::install(&database.url(), &shared::kafka(), "canary-none").await;
    let setup = place.setup.clone().set("canary.every_s", 1).set("canary.topic", "no-such-canary-topic");
    let mut relay = setup.start().await;
    relay.wait_until("it fails", SOON, |m| m.sum("outboxd_canary_failures_total", &[]) >= 2.0).await;
    let mut connection = database.connect().await;
    let emitted: i64 =
        sqlx::query_scalar("select count(*) from outbox.message").fetch_one(&mut connection).await.unwrap();
    assert_eq!(emitted, 0);
    assert!(relay.terminate(Duration::from_secs(20)).await.success());
    relay.expect_no_surprises(&["a canary did not come"]);
}

#[tokio::test]
async fn a_canary_that_would_be_parked_or_has_no_topic_is_refused_by_the_configuration() {
    let database = Database::create().await;
    let place = Place::install(&database.url(), &shared::kafka(), "canary-config").await;
    let check = async |setup: outboxd_testkit::relay::Setup| {
        let output = setup.run(&["config", "check"]).await;
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, said) = check(place.setup.clone().set("canary.every_s", 5)).await;
    assert_eq!(code, Some(78));
    assert!(said.contains("canary.topic: is not set"), "{said}");
    let setup = place.setup.clone().set("canary.every_s", 5).set("canary.topic", "canary");
    assert_eq!(check(setup.clone()).await.0, Some(0));
    let (code, said) = check(setup.set("relay.topics_allowed", "orders*")).await;
    assert_eq!(code, Some(78));
    assert!(said.contains("is not among relay.topics_allowed"), "{said}");
}
