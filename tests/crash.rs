//! The relay's process ends without warning at every stage of the path. What was settled stays settled, what was not is read
//! again.

use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use outboxd_testkit::checker;
use outboxd_testkit::kafka;
use outboxd_testkit::postgres::Database;
use outboxd_testkit::relay::Setup;
use outboxd_testkit::shared;
use outboxd_testkit::workload::{Workload, scale};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::support::{BINARY, SOON};

/// Where the process may end, and at most after how many passes.
const STAGES: [(&str, u32); 6] = [
    ("read", 40),
    ("durable", 20),
    ("enqueued", 20),
    ("acknowledged", 100),
    ("settling", 10),
    ("settled", 10),
];
/// Messages between read and settled: what one crash may duplicate.
const IN_FLIGHT: u32 = 50;
const SIGABRT: i32 = 6;

/// D1, D2, D3. Also the price of a crash: at most what was in flight comes twice.
/// `OUTBOXD_TEST_CRASH_ROUNDS` makes it longer.
#[tokio::test]
async fn a_relay_killed_at_every_stage_under_load_duplicates_what_was_in_flight_and_loses_nothing() {
    let rounds = scale("OUTBOXD_TEST_CRASH_ROUNDS", 4);
    let seed = u64::from(scale("OUTBOXD_TEST_CRASH_SEED", rand::rng().random()));
    eprintln!("OUTBOXD_TEST_CRASH_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let database = Database::create().await;
    let topics = [kafka::unique_topic("crash")];
    kafka::create_topic(&shared::kafka(), &topics[0], 3, &[]).await;
    let setup = Setup::new(BINARY, &database.url(), &shared::kafka())
        .set("relay.page_messages", 20)
        .set("relay.in_flight_messages", IN_FLIGHT)
        .set("relay.settle_every_ms", 10);
    setup.run_ok(&["migrate"]).await;
    let mut workload = Workload::new(&topics, seed);
    workload.pause_max = Duration::from_millis(20);
    let writing = workload.start(&database.url()).await;

    let mut crashes = 0;
    for _ in 0..rounds {
        for (stage, passes_max) in STAGES {
            let at = format!("{stage}:{}", rng.random_range(1..=passes_max));
            let mut relay = setup.clone().variable("OUTBOXD_FAILPOINT", &at).spawn();
            let status = relay.ended(SOON).await;
            assert_eq!(status.signal(), Some(SIGABRT), "it ends at {at}, by nothing else: {status}");
            relay.expect_no_surprises(&["failpoint"]);
            crashes += 1;
        }
    }
    writing.stop().await;
    let mut last = setup.start().await;
    checker::dealt_with(&database.url(), SOON).await;
    assert!(last.terminate(SOON).await.success());
    last.expect_no_surprises(&[]);

    let account = checker::account(&database.url(), &shared::kafka(), &topics).await;
    eprintln!("{crashes} crashes: {account}");
    assert!(crashes >= 20);
    account.assert_all_published(u64::from(crashes * IN_FLIGHT));
}

/// D1. Settled means settled: a crash after it repeats nothing of it.
#[tokio::test]
async fn a_relay_killed_after_a_settle_does_not_repeat_what_it_settled() {
    let database = Database::create().await;
    let topics = [kafka::unique_topic("settled")];
    kafka::create_topic(&shared::kafka(), &topics[0], 1, &[]).await;
    let setup = Setup::new(BINARY, &database.url(), &shared::kafka());
    setup.run_ok(&["migrate"]).await;
    let mut connection = database.connect().await;
    for _ in 0..5 {
        crate::support::emit_on(&mut connection, &topics[0], "k", "{}").await;
        let mut relay = setup.clone().variable("OUTBOXD_FAILPOINT", "settled:1").spawn();
        assert_eq!(relay.ended(SOON).await.signal(), Some(SIGABRT));
    }
    checker::account(&database.url(), &shared::kafka(), &topics).await.assert_all_published(0);
}

/// D1, D3. Between acknowledgement and settle lies the window in which a crash duplicates: exactly those messages, no
/// others, and in their order.
#[tokio::test]
async fn a_relay_killed_between_publish_and_settle_duplicates_but_never_loses() {
    let database = Database::create().await;
    let topics = [kafka::unique_topic("window")];
    kafka::create_topic(&shared::kafka(), &topics[0], 1, &[]).await;
    let setup = Setup::new(BINARY, &database.url(), &shared::kafka());
    setup.run_ok(&["migrate"]).await;
    let mut connection = database.connect().await;
    let mut transaction = sqlx::Connection::begin(&mut connection).await.unwrap();
    for n in 0..10 {
        crate::support::emit_on(&mut transaction, &topics[0], "k", &format!("{{\"n\": {n}}}")).await;
    }
    transaction.commit().await.unwrap();
    let mut relay = setup.clone().variable("OUTBOXD_FAILPOINT", "settling:1").spawn();
    assert_eq!(relay.ended(SOON).await.signal(), Some(SIGABRT));
    let published = kafka::read_all(&shared::kafka(), &topics[0]).await.len();
    assert!((1..=10).contains(&published), "{published} were acknowledged and none is settled");
    let mut next = setup.start().await;
    checker::dealt_with(&database.url(), SOON).await;
    let account = checker::account(&database.url(), &shared::kafka(), &topics).await;
    account.assert_all_published(10);
    assert!(account.duplicates >= 1, "{account}");
    next.expect_no_surprises(&[]);
    assert!(next.terminate(SOON).await.success());
}
