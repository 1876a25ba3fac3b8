//! The founding incident, re-enacted: a field of one intent is null, the handler throws, the consumer acknowledged anyway, and an order
//! was lost that nobody missed for weeks. Here nothing is acknowledged, it is seen at once, and once the handler is put right
//! everything has taken effect once, although the relay was killed and its records came twice.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::process::ExitStatusExt as _;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::Context as _;
use outbox_client::postgres::{Inbox, Outbox};
use outbox_client::{Context, Intent};
use outboxd_testkit::kafka::{self, Consumed};
use outboxd_testkit::postgres::Database;
use outboxd_testkit::relay::{Setup, eventually};
use outboxd_testkit::{checker, shared};
use rdkafka::consumer::{Consumer as _, StreamConsumer};
use rdkafka::message::BorrowedMessage;
use rdkafka::{ClientConfig, Message as _};
use serde::{Deserialize, Serialize};
use sqlx::postgres::PgPoolOptions;
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use super::inbox_migrator;
use super::once::{Failure, consume};
use crate::migrations::{run, text};
use crate::support::{BINARY, SOON};

const ORDERS: i64 = 24;
/// The one whose amount is null.
const POISON: i64 = 10;
const PARTITIONS: i32 = 2;

#[derive(Serialize, Deserialize)]
struct Placed {
    order: i64,
    amount_cents: Option<i64>,
}

/// A shop with an outbox, and shipping with an inbox, in one database.
struct Shop {
    database: Database,
    pool: PgPool,
    topic: String,
    /// Message id of the order with the null field.
    poison: Uuid,
}

impl Shop {
    /// Takes orders, and publishes each record twice: the relay is killed after the acknowledgement and before the settle.
    async fn open() -> Self {
        let database = Database::create().await;
        let topic = kafka::unique_topic("incident");
        kafka::create_topic(&shared::kafka(), &topic, PARTITIONS, &[]).await;
        let setup = Setup::new(BINARY, &database.url(), &shared::kafka());
        setup.run_ok(&["migrate"]).await;
        inbox_migrator(&database.url(), "inbox").apply().await.unwrap();
        let pool = PgPoolOptions::new().max_connections(2).connect(&database.url()).await.unwrap();
        let mut connection = database.connect().await;
        run(
            &mut connection,
            "create table orders (id bigint primary key, amount_cents bigint);
             create table shipment (order_id bigint, amount_cents bigint, correlation_id text, causation_id text)",
        )
        .await
        .unwrap();
        let mut poison = Uuid::nil();
        for order in 0..ORDERS {
            let amount_cents = (order != POISON).then_some(order * 100);
            let id = Context::correlated(format!("req-{order}"))
                .scope(place(&pool, &topic, order, amount_cents))
                .await;
            if order == POISON {
                poison = id.unwrap();
            }
        }
        let mut killed = setup.clone().variable("OUTBOXD_FAILPOINT", "settling:1").spawn();
        assert!(killed.ended(SOON).await.signal().is_some());
        let mut relay = setup.start().await;
        checker::dealt_with(&database.url(), SOON).await;
        assert!(relay.terminate(SOON).await.success());
        Self { database, pool, topic, poison }
    }

    async fn records(&self) -> Vec<Consumed> {
        kafka::read_all(&shared::kafka(), &self.topic).await
    }

    /// Waits until the group has acknowledged up to these offsets.
    async fn acknowledges(&self, group: &str, ends: &BTreeMap<i32, i64>) {
        let look =
            async || (kafka::acknowledged(&shared::kafka(), &self.topic, group).await == *ends).then_some(());
        eventually("everything is acknowledged", SOON, look).await;
    }

    /// The orders that were shipped, as often as they were.
    async fn shipped(&self, connection: &mut PgConnection) -> Vec<i64> {
        let sql = "select coalesce(array_agg(order_id order by order_id), '{}') from shipment";
        sqlx::query_scalar(sql).fetch_one(connection).await.unwrap()
    }
}

/// Per partition, where it ends.
pub(crate) fn ends(records: &[Consumed]) -> BTreeMap<i32, i64> {
    let mut ends: BTreeMap<i32, i64> = (0..PARTITIONS).map(|partition| (partition, 0)).collect();
    for record in records {
        ends.insert(record.partition, record.offset + 1);
    }
    ends
}

/// What the web request does.
async fn place(pool: &PgPool, topic: &str, order: i64, amount_cents: Option<i64>) -> anyhow::Result<Uuid> {
    let mut transaction = pool.begin().await?;
    sqlx::query("insert into orders (id, amount_cents) values ($1, $2)")
        .bind(order)
        .bind(amount_cents)
        .execute(&mut *transaction)
        .await?;
    let intent = Intent::to(topic)
        .key(format!("customer-{}", order % 5))
        .payload_json(&Placed { order, amount_cents })?;
    let id = Outbox::new().emit(&mut transaction, &intent).await?;
    transaction.commit().await?;
    Ok(id)
}

/// The handler as it was first written. What it would emit itself is correlated with the message.
async fn ship(transaction: &mut PgConnection, record: &BorrowedMessage<'_>) -> anyhow::Result<()> {
    let placed: Placed = serde_json::from_slice(record.payload().unwrap_or_default())?;
    let amount_cents = placed.amount_cents.context("the amount is null")?;
    write_shipment(transaction, placed.order, amount_cents).await
}

/// The handler put right.
async fn ship_anything(transaction: &mut PgConnection, record: &BorrowedMessage<'_>) -> anyhow::Result<()> {
    let placed: Placed = serde_json::from_slice(record.payload().unwrap_or_default())?;
    write_shipment(transaction, placed.order, placed.amount_cents.unwrap_or(0)).await
}

async fn write_shipment(transaction: &mut PgConnection, order: i64, amount_cents: i64) -> anyhow::Result<()> {
    let context = Context::current();
    sqlx::query("insert into shipment values ($1, $2, $3, $4)")
        .bind(order)
        .bind(amount_cents)
        .bind(context.correlation_id)
        .bind(context.causation_id)
        .execute(transaction)
        .await?;
    Ok(())
}

fn consumer(group: &str) -> StreamConsumer {
    ClientConfig::new()
        .set("bootstrap.servers", shared::kafka())
        .set("group.id", group)
        .set("enable.auto.commit", "false")
        .set("auto.offset.reset", "earliest")
        .set("fetch.wait.max.ms", "20")
        .create()
        .unwrap()
}

/// Consumes in a group until `until` is done.
async fn consuming<T>(
    shop: &Shop,
    group: &str,
    handle: impl AsyncFn(&mut PgConnection, &BorrowedMessage<'_>) -> anyhow::Result<()>,
    report: impl Fn(&Failure),
    until: impl Future<Output = T>,
) -> T {
    consuming_with(&consumer(group), shop, handle, report, until).await
}

async fn consuming_with<T>(
    consumer: &StreamConsumer,
    shop: &Shop,
    handle: impl AsyncFn(&mut PgConnection, &BorrowedMessage<'_>) -> anyhow::Result<()>,
    report: impl Fn(&Failure),
    until: impl Future<Output = T>,
) -> T {
    consumer.subscribe(&[&shop.topic]).unwrap();
    let inbox = Inbox::of("shipping");
    let consuming = Box::pin(consume(consumer, &shop.pool, &inbox, handle, report));
    let ended = tokio::select! {
        ended = consuming => Err(ended),
        done = until => Ok(done),
    };
    ended.unwrap_or_else(|ended| panic!("the consumer ended: {ended:?}"))
}

/// D1. Beyond the relay: what it published is not lost at its last metre either.
#[tokio::test]
async fn an_intent_whose_handler_throws_is_never_acknowledged_seen_at_once_and_handled_once_the_handler_is_right()
 {
    let shop = Shop::open().await;
    let records = shop.records().await;
    let first = records.iter().find(|record| record.id() == shop.poison).unwrap();
    let (partition, offset) = (first.partition, first.offset);
    let copies: BTreeSet<Uuid> = records.iter().map(Consumed::id).collect();
    assert_eq!(i64::try_from(copies.len()).unwrap(), ORDERS);
    assert!(records.len() > copies.len(), "the killed relay's records came again");
    let ends = ends(&records);
    let orders = |of: &dyn Fn(&Consumed) -> bool| {
        let payload = |record: &Consumed| {
            serde_json::from_slice::<Placed>(record.payload.as_ref().unwrap()).unwrap().order
        };
        records.iter().filter(|record| of(record)).map(payload).collect::<BTreeSet<_>>()
    };
    let group = format!("shipping-{}", shop.topic);
    let mut connection = shop.database.connect().await;

    let failures: Mutex<Vec<String>> = Mutex::default();
    let report = |failure: &Failure| {
        let delivery = failure.delivery.as_ref().unwrap();
        let correlation_id = delivery.context.correlation_id.as_deref().unwrap();
        let line = format!(
            "{} {} {correlation_id} {} {:#}",
            failure.place, delivery.id, failure.attempts, failure.error
        );
        eprintln!("{line}");
        failures.lock().unwrap().push(line);
    };
    // Everything else goes on: the other partition to its end, this one to the record before.
    let reachable = orders(&|record| record.partition != partition || record.offset < offset);
    let mut reached = ends.clone();
    reached.insert(partition, offset);
    let stopped = async {
        eventually("it stops at the poison and tries again", SOON, async || {
            let shipped: BTreeSet<i64> = shop.shipped(&mut connection).await.into_iter().collect();
            (failures.lock().unwrap().len() >= 4 && shipped == reachable).then_some(())
        })
        .await;
        // Not one of the messages behind it moves the acknowledgement.
        shop.acknowledges(&group, &reached).await;
    };
    consuming(&shop, &group, ship, report, stopped).await;

    let seen = failures.into_inner().unwrap();
    for (index, line) in seen.iter().enumerate() {
        let expected = format!(
            "{}/{partition}@{offset} {} req-{POISON} {} the amount is null",
            shop.topic,
            shop.poison,
            index + 1
        );
        assert_eq!(*line, expected);
    }
    assert_eq!(
        shop.shipped(&mut connection).await,
        Vec::from_iter(reachable),
        "each once, in spite of copies"
    );

    // The handler is put right and the consumer started again: nobody has to find, skip or replay anything.
    let all: Vec<i64> = (0..ORDERS).collect();
    let no_failure = |failure: &Failure| panic!("{failure:?}");
    consuming(&shop, &group, ship_anything, no_failure, shop.acknowledges(&group, &ends)).await;
    assert_eq!(shop.shipped(&mut connection).await, all);
    let duplicates = "select sum(duplicates) from inbox.handled";
    let duplicates: i64 = text(&mut connection, duplicates).await.unwrap().parse().unwrap();
    assert_eq!(
        duplicates,
        i64::try_from(records.len() - copies.len()).unwrap(),
        "each copy was absorbed and counted"
    );
    let uncorrelated = "select count(*) from shipment s join inbox.handled h on h.id = s.causation_id::uuid
        where s.correlation_id = 'req-' || s.order_id and h.correlation_id = s.correlation_id";
    assert_eq!(text(&mut connection, uncorrelated).await.unwrap(), ORDERS.to_string());

    // Everything from the beginning for another group of the same consumer: a replay changes nothing.
    let replay = format!("replay-{}", shop.topic);
    consuming(&shop, &replay, ship_anything, no_failure, shop.acknowledges(&replay, &ends)).await;
    assert_eq!(shop.shipped(&mut connection).await, all);
}

/// A database that is away is a failure like any other: nothing is acknowledged, and it goes on by itself.
#[tokio::test]
async fn a_database_that_ends_every_session_costs_a_consumer_nothing_but_time() {
    let shop = Shop::open().await;
    let ends = ends(&shop.records().await);
    let group = format!("shipping-{}", shop.topic);
    let mut connection = shop.database.connect().await;
    let handled = std::sync::atomic::AtomicU32::new(0);
    let handle = async |transaction: &mut PgConnection, record: &BorrowedMessage<'_>| {
        // Every third time the session ends between the claim and the effect.
        if handled.fetch_add(1, std::sync::atomic::Ordering::Relaxed) % 3 == 2 {
            sqlx::query("select pg_terminate_backend(pg_backend_pid())").execute(&mut *transaction).await?;
        }
        ship_anything(transaction, record).await
    };
    let failures = std::sync::atomic::AtomicU32::new(0);
    let report = |failure: &Failure| {
        assert!(failure.again_in >= Duration::from_millis(100));
        failures.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    };
    consuming(&shop, &group, handle, report, shop.acknowledges(&group, &ends)).await;
    assert_eq!(shop.shipped(&mut connection).await, Vec::from_iter(0..ORDERS));
    assert!(failures.into_inner() >= 8);
}

/// The handler put right is rolled out while the old one still runs: partitions move from a consumer that stopped to one that
/// goes on.
#[tokio::test]
async fn a_partition_that_stopped_and_moves_to_another_consumer_goes_on_there_from_the_failure() {
    let shop = Shop::open().await;
    let ends = ends(&shop.records().await);
    let group = format!("shipping-{}", shop.topic);
    let new = consumer(&group);
    let stopped = tokio::sync::Notify::new();
    let report = |failure: &Failure| {
        assert_eq!(failure.delivery.as_ref().unwrap().id, shop.poison);
        stopped.notify_one();
    };
    let old_release = async {
        // Closed when it is dropped, which leaves the group.
        let old = consumer(&group);
        let assigned = |consumer: &StreamConsumer| consumer.assignment().unwrap().count();
        let both = async || (assigned(&old) == 1 && assigned(&new) == 1).then_some(());
        let until_both_run = eventually("each has a partition", SOON, both);
        consuming_with(&old, &shop, ship, report, until_both_run).await;
    };
    let new_release = async {
        stopped.notified().await;
        let no_failure = |failure: &Failure| panic!("{failure:?}");
        consuming_with(&new, &shop, ship_anything, no_failure, shop.acknowledges(&group, &ends)).await;
    };
    tokio::join!(old_release, new_release);
    let mut connection = shop.database.connect().await;
    assert_eq!(shop.shipped(&mut connection).await, Vec::from_iter(0..ORDERS));
}

/// A day that was lost at another consumer is published again for everybody: whoever keeps the ids of what it has handled changes nothing.
#[tokio::test]
async fn a_consumer_that_is_replayed_a_whole_day_changes_nothing() {
    let shop = Shop::open().await;
    let group = format!("shipping-{}", shop.topic);
    let mut connection = shop.database.connect().await;
    let no_failure = |failure: &Failure| panic!("{failure:?}");
    let before = ends(&shop.records().await);
    consuming(&shop, &group, ship_anything, no_failure, shop.acknowledges(&group, &before)).await;
    let everything = "select md5(string_agg(s::text, '/' order by order_id)) from shipment s";
    let shipped = text(&mut connection, everything).await;
    let absorbed = "select sum(duplicates) from inbox.handled";
    let absorbed_before: i64 = text(&mut connection, absorbed).await.unwrap().parse().unwrap();

    let setup = Setup::new(BINARY, &shop.database.url(), &shared::kafka());
    let mut relay = setup.start().await;
    let day: Vec<String> = sqlx::query_scalar(
        "select to_char((now() at time zone 'UTC')::date + d, 'YYYY-MM-DD\"T00:00:00Z\"') from unnest(array[-1, 2]) d",
    )
    .fetch_all(&mut connection)
    .await
    .unwrap();
    let start = ["replay", "start", "--from", &day[0], "--to", &day[1], "--reason", "billing lost a day"];
    setup.run_ok(&start).await;
    relay
        .wait_until("it is published again", SOON, |m| {
            m.sum("outboxd_replayed_total", &[]) >= f64::from(i32::try_from(ORDERS).unwrap())
        })
        .await;
    let records = shop.records().await;
    let copies = records.iter().filter(|record| record.header("outbox-replay-id").is_some()).count();
    assert_eq!(i64::try_from(copies).unwrap(), ORDERS);
    let after = ends(&records);
    consuming(&shop, &group, ship_anything, no_failure, shop.acknowledges(&group, &after)).await;
    assert_eq!(text(&mut connection, everything).await, shipped);
    assert_eq!(shop.shipped(&mut connection).await, Vec::from_iter(0..ORDERS));
    let absorbed_after: i64 = text(&mut connection, absorbed).await.unwrap().parse().unwrap();
    assert_eq!(absorbed_after - absorbed_before, ORDERS, "each copy was absorbed and counted");
}
