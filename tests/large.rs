//! Large and odd: what an outbox may hold, the relay publishes.

use std::collections::BTreeMap;

use outboxd_testkit::checker;
use outboxd_testkit::kafka::{self, Broker};
use outboxd_testkit::postgres::Database;
use outboxd_testkit::relay::Setup;
use outboxd_testkit::shared;
use outboxd_testkit::workload::scale;

use crate::migrations::run;
use crate::support::{BINARY, Place, SOON};

const MIB: u64 = 1 << 20;

/// D1, D3. Three limits are raised, and each says so where it is too low: the outbox's, the topic's, and what may be in flight.
#[tokio::test]
async fn messages_of_five_megabytes_are_relayed_with_raised_limits_in_bounded_memory() {
    const MESSAGES: u64 = 60;
    let database = Database::create().await;
    let topic = kafka::unique_topic("large");
    kafka::create_topic(&shared::kafka(), &topic, 3, &[("max.message.bytes", "8000000")]).await;
    let setup = Setup::new(BINARY, &database.url(), &shared::kafka());
    setup.run_ok(&["migrate"]).await;
    let mut connection = database.connect().await;
    let large = "insert into outbox.message (topic, key, payload)
                 select $1, 'k' || i % 5, decode(repeat(to_hex(i % 16) || 'a', 5000000), 'hex') from generate_series(1, $2) i";
    let refused = sqlx::query(large).bind(&topic).bind(1).execute(&mut connection).await.unwrap_err();
    assert!(refused.to_string().contains("larger than 1000000 bytes together"), "{refused}");
    run(
        &mut connection,
        "create or replace function outbox.max_message_bytes() returns integer
           language plpgsql immutable parallel safe set search_path = pg_catalog, pg_temp
         as $$ begin return 6000000; end $$",
    )
    .await
    .unwrap();
    let checked = setup.run_json(&["check", "--topic", &topic, "--output", "json"]).await;
    let errors: Vec<_> =
        checked.as_array().unwrap().iter().filter(|finding| finding["severity"] == "error").collect();
    assert!(errors.is_empty(), "{errors:?}");
    let mut relay = setup.start().await;
    relay.leads(SOON).await;
    let (before, _) = relay.resident_bytes();
    sqlx::query(large)
        .bind(&topic)
        .bind(i32::try_from(MESSAGES).unwrap())
        .execute(&mut connection)
        .await
        .unwrap();
    let all = |m: &outboxd_testkit::relay::Metrics| m.sum("outboxd_dispatched_total", &[]) >= 60.0;
    relay.wait_until("all are dispatched", SOON, all).await;
    let (_, peak) = relay.resident_bytes();
    println!("resident: {} MiB before, {} MiB at most", before / MIB, peak / MIB);
    // relay.in_flight_bytes is 32 MiB; twice that is with the client and in a page that was just read.
    assert!(peak < 300 * MIB, "300 MB of messages took {} MiB", peak / MIB);
    checker::dealt_with(&database.url(), SOON).await;
    checker::account(&database.url(), &shared::kafka(), &[topic]).await.assert_all_published(0);
    relay.expect_no_surprises(&[]);
}

/// D1, D3. A key of 32 KB, a hundred headers, and both at once beside ordinary messages.
#[tokio::test]
async fn keys_of_32_kilobytes_and_a_hundred_headers_arrive_as_written_and_in_order() {
    let database = Database::create().await;
    let place = Place::install(&database.url(), &shared::kafka(), "odd").await;
    let mut connection = database.connect().await;
    for n in 0..40_u32 {
        sqlx::query(
            "insert into outbox.message (topic, key, payload, headers)
             values ($1, repeat('schlüssel', 3640) || $2, convert_to($3, 'UTF8'),
               (select jsonb_object_agg('header-' || i, repeat('v', i)) from generate_series(1, 100) i))",
        )
        .bind(&place.topic)
        .bind(i32::try_from(n % 4).unwrap())
        .bind(format!("{{\"n\": {n}}}"))
        .execute(&mut connection)
        .await
        .unwrap();
        place.emit(&format!("k{}", n % 4), &format!("{{\"n\": {n}}}")).await;
    }
    let mut relay = place.setup.start().await;
    relay.wait_until("all are dispatched", SOON, |m| m.sum("outboxd_dispatched_total", &[]) >= 80.0).await;
    place.account().await.assert_all_published(0);
    let records = kafka::read_all(&place.bootstrap, &place.topic).await;
    let odd: Vec<_> =
        records.iter().filter(|record| record.key.as_ref().is_some_and(|key| key.len() > 32_000)).collect();
    assert_eq!(odd.len(), 40);
    for record in odd {
        for nth in [1, 57, 100] {
            assert_eq!(record.header(&format!("header-{nth}")), Some("v".repeat(nth).as_str()));
        }
    }
    relay.expect_no_surprises(&[]);
}

/// D1, D3. Keys are where Kafka's own partitioner puts them, however many partitions there are.
#[tokio::test]
async fn a_topic_of_six_hundred_partitions_is_written_to_in_all_of_them_in_order() {
    let database = Database::create().await;
    let topic = kafka::unique_topic("wide");
    kafka::create_topic(&shared::kafka(), &topic, 600, &[]).await;
    let setup = Setup::new(BINARY, &database.url(), &shared::kafka());
    setup.run_ok(&["migrate"]).await;
    let mut connection = database.connect().await;
    sqlx::query(
        "insert into outbox.message (topic, key, payload)
         select $1, 'order-' || i % 4000, convert_to('{\"n\": ' || i || '}', 'UTF8') from generate_series(1, 12000) i",
    )
    .bind(&topic)
    .execute(&mut connection)
    .await
    .unwrap();
    let mut relay = setup.start().await;
    relay
        .wait_until("all are dispatched", SOON, |m| m.sum("outboxd_dispatched_total", &[]) >= 12_000.0)
        .await;
    checker::dealt_with(&database.url(), SOON).await;
    checker::account(&database.url(), &shared::kafka(), std::slice::from_ref(&topic))
        .await
        .assert_all_published(0);
    let mut by_partition: BTreeMap<i32, u32> = BTreeMap::new();
    for record in kafka::read_all(&shared::kafka(), &topic).await {
        *by_partition.entry(record.partition).or_default() += 1;
    }
    assert!(by_partition.len() > 550, "{} partitions of 600 got something", by_partition.len());
    relay.expect_no_surprises(&[]);
}

/// D1, D3. As many topics as a tenant each would make. On a broker of its own, because all that ask for metadata get theirs too.
///
/// `OUTBOXD_TEST_TOPICS=10000` makes ten thousand, which takes a minute or two.
#[tokio::test]
async fn thousands_of_topics_are_looked_up_together_and_written_to() {
    let wanted = scale("OUTBOXD_TEST_TOPICS", 2_000);
    let database = Database::create().await;
    let options = kafka::Options::default().property("log.index.size.max.bytes", "4096");
    let broker = Broker::start(options).await.unwrap();
    let bootstrap = broker.bootstrap();
    let topics: Vec<String> = (0..wanted).map(|nth| format!("tenant-{nth}")).collect();
    let began = std::time::Instant::now();
    kafka::create_topics(&bootstrap, &topics).await;
    println!("{wanted} topics in {:?}", began.elapsed());
    let setup = Setup::new(BINARY, &database.url(), &bootstrap);
    setup.run_ok(&["migrate"]).await;
    sqlx::query(
        "insert into outbox.message (topic, key, payload)
         select 'tenant-' || i % $1, 'k' || i % 3, convert_to('{\"n\": ' || i || '}', 'UTF8') from generate_series(0, 3 * $1 - 1) i",
    )
    .bind(wanted.cast_signed())
    .execute(&mut database.connect().await)
    .await
    .unwrap();
    let all = f64::from(3 * wanted);
    let mut relay = setup.start().await;
    let began = std::time::Instant::now();
    let metrics = relay
        .wait_until("all are dispatched", 3 * SOON, |m| m.sum("outboxd_dispatched_total", &[]) >= all)
        .await;
    println!("three messages of each in {:?}", began.elapsed());
    assert_eq!(metrics.sum("outboxd_held_total", &[]), 0.0, "no topic was taken for a missing one");
    // The metric has a label for each of the first hundred topics, and one for all others.
    assert!(metrics.sum("outboxd_acknowledged_total", &[("topic", "other")]) > 0.9 * all);
    let some: Vec<String> = topics.into_iter().step_by(997).collect();
    let mut records = 0;
    for topic in &some {
        records += kafka::count(&bootstrap, topic).await;
    }
    assert_eq!(records, 3 * some.len());
    checker::dealt_with(&database.url(), SOON).await;
    relay.expect_no_surprises(&[]);
}
