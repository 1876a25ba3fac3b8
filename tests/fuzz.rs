//! Sixteen writers that do everything awkward, bulk transactions that the others overtake, pages so small that late messages
//! need many of them, and a relay that is killed at random and in the middle of catch-ups.

use std::time::Duration;

use outboxd_testkit::checker;
use outboxd_testkit::kafka;
use outboxd_testkit::postgres::Database;
use outboxd_testkit::relay::{Relay, Setup, eventually};
use outboxd_testkit::shared;
use outboxd_testkit::workload::{Bulk, Workload, scale};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use sqlx::PgConnection;

use crate::support::{BINARY, SOON};

/// Messages between read and settled: what a kill may duplicate.
const IN_FLIGHT: u32 = 2_000;

async fn in_catch_up(connection: &mut PgConnection) -> bool {
    sqlx::query_scalar("select pos is not null from outbox.cursor").fetch_one(connection).await.unwrap()
}

/// D1, D2, D3. `OUTBOXD_TEST_FUZZ_SEED` repeats a run's choices, `OUTBOXD_TEST_FUZZ_KILLS` makes it longer.
#[tokio::test]
async fn sixteen_writers_and_a_relay_killed_mid_catch_up_lose_invent_and_reorder_nothing() {
    let seed = u64::from(scale("OUTBOXD_TEST_FUZZ_SEED", rand::rng().random()));
    let kills = scale("OUTBOXD_TEST_FUZZ_KILLS", 8);
    eprintln!("OUTBOXD_TEST_FUZZ_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let database = Database::create().await;
    let topics = [kafka::unique_topic("fuzz-a"), kafka::unique_topic("fuzz-b")];
    for topic in &topics {
        kafka::create_topic(&shared::kafka(), topic, 3, &[]).await;
    }
    let setup = Setup::new(BINARY, &database.url(), &shared::kafka())
        .set("relay.page_messages", 100)
        .set("relay.in_flight_messages", IN_FLIGHT);
    setup.run_ok(&["migrate"]).await;
    let mut workload = Workload::new(&topics, seed);
    workload.writers = 16;
    workload.keys = 100;
    workload.open_max = Duration::from_millis(50);
    workload.pause_max = Duration::from_millis(40);
    workload.bulk =
        Some(Bulk { rows: 5_000, open_max: Duration::from_millis(500), pause: Duration::from_millis(200) });
    let writing = workload.start(&database.url()).await;

    let mut connection = database.connect().await;
    let mut mid_catch_up = 0;
    for kill in 0..kills {
        let mut relay = setup.start().await;
        if kill % 2 == 0 {
            eventually("a catch-up is under way", SOON, async || {
                in_catch_up(&mut connection).await.then_some(())
            })
            .await;
        } else {
            let more = f64::from(rng.random_range(1..2_000_u32));
            relay.wait_until("it dispatches", SOON, |m| m.sum("outboxd_dispatched_total", &[]) > more).await;
        }
        relay.kill_9().await;
        relay.expect_no_surprises(&[]);
        // Nobody writes to the cursor now.
        mid_catch_up += u32::from(in_catch_up(&mut connection).await);
    }
    let written = writing.stop().await;
    let mut last = setup.start().await;
    checker::dealt_with(&database.url(), SOON * 2).await;
    last.expect_no_surprises(&[]);
    assert!(last.terminate(SOON).await.success());

    let account = checker::account(&database.url(), &shared::kafka(), &topics).await;
    eprintln!("{written:?}; killed in the middle of {mid_catch_up} catch-ups; {account}");
    assert_eq!(written.failed, 0, "the database was well all the time");
    assert!(mid_catch_up > 0, "at least one kill hit a catch-up");
    account.assert_all_published(u64::from(kills * IN_FLIGHT));
}

/// D1, D2, D3. Without kills there is no excuse for a single duplicate.
#[tokio::test]
async fn bulk_transactions_overtaken_by_writers_cost_no_duplicate_and_no_inversion() {
    let database = Database::create().await;
    let topics = [kafka::unique_topic("bulk-a"), kafka::unique_topic("bulk-b")];
    for topic in &topics {
        kafka::create_topic(&shared::kafka(), topic, 3, &[]).await;
    }
    let setup = Setup::new(BINARY, &database.url(), &shared::kafka())
        .set("relay.page_messages", 50)
        .set("relay.in_flight_messages", 500);
    setup.run_ok(&["migrate"]).await;
    let mut relay: Relay = setup.start().await;
    let mut workload = Workload::new(&topics, 31);
    workload.writers = 6;
    workload.bulk =
        Some(Bulk { rows: 600, open_max: Duration::from_millis(400), pause: Duration::from_millis(400) });
    let writing = workload.start(&database.url()).await;
    relay
        .wait_until("late messages have come in pages", SOON * 2, |m| {
            m.sum("outboxd_late_messages_total", &[]) > 3_000.0
        })
        .await;
    writing.stop().await;
    checker::dealt_with(&database.url(), SOON * 2).await;
    checker::account(&database.url(), &shared::kafka(), &topics).await.assert_all_published(0);
    relay.expect_no_surprises(&[]);
}
