//! The recipes of docs/recipes, each in its own language: a producer that emits in its transaction, and a consumer that handles
//! each message once and acknowledges nothing that failed.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::process::ExitStatusExt as _;
use std::process::Command;

use nix::sys::signal::Signal;
use outboxd_postgres::migrate::GrantRoles;
use outboxd_testkit::kafka::{self, Consumed};
use outboxd_testkit::postgres::Database;
use outboxd_testkit::process::{Group, Process};
use outboxd_testkit::relay::{Setup, eventually};
use outboxd_testkit::{checker, shared};
use sqlx::PgConnection;
use tempfile::TempDir;
use uuid::Uuid;

use self::runtime::Recipe;
use crate::inbox::inbox_migrator;
use crate::inbox::incident::ends;
use crate::migrations::{migrator, run, text};
use crate::support::{BINARY, SOON};

pub(crate) mod runtime;

const TABLES: &str = include_str!("../docs/recipes/tables.sql");
const ORDERS: i64 = 12;
/// The one without an amount, which the shipment's column does not take: the handler fails.
const POISON: i64 = 5;

#[tokio::test]
async fn the_recipe_for_python_loses_nothing_and_handles_everything_once() {
    plays(runtime::python).await;
}

#[tokio::test]
async fn the_recipe_for_java_loses_nothing_and_handles_everything_once() {
    plays(runtime::java).await;
}

#[tokio::test]
async fn the_recipe_for_go_loses_nothing_and_handles_everything_once() {
    plays(runtime::go).await;
}

#[tokio::test]
async fn the_recipe_for_node_loses_nothing_and_handles_everything_once() {
    plays(runtime::node).await;
}

/// Orders go in, one of them bad; the relay publishes them, and is killed so that they come twice; the consumer stops at the bad
/// one and goes on once its table takes it.
async fn plays(prepare: fn() -> anyhow::Result<Option<Recipe>>) {
    let Some(recipe) = tokio::task::spawn_blocking(prepare).await.unwrap().unwrap() else { return };
    let shop = Shop::open(&recipe).await;
    let records = kafka::read_all(&shared::kafka(), &shop.topic).await;
    let order = |record: &Consumed| record.header("correlation-id").unwrap()[4..].parse::<i64>().unwrap();
    let poison = records.iter().find(|record| order(record) == POISON).unwrap();
    let copies: BTreeSet<Uuid> = records.iter().map(Consumed::id).collect();
    assert_eq!(i64::try_from(copies.len()).unwrap(), ORDERS);
    assert!(records.len() > copies.len(), "the killed relay's records came again");
    let before = |record: &&Consumed| record.partition != poison.partition || record.offset < poison.offset;
    let reachable: Vec<i64> =
        records.iter().filter(before).map(order).collect::<BTreeSet<_>>().into_iter().collect();
    let mut reached = ends(&records);
    reached.insert(poison.partition, poison.offset);

    let group = format!("shipping-{}", shop.topic);
    let mut connection = shop.database.connect().await;
    let directory = TempDir::new().unwrap();
    let log = directory.path().join("log");
    let mut command = recipe.consumer();
    command.args([&recipe.url(&shop.database.url_as(&shop.consumer)), &shared::kafka(), &shop.topic, &group]);
    let mut consumer = Process::start("the consumer", command, &log, Group::Starter).unwrap();
    let said = || std::fs::read_to_string(&log).unwrap_or_default();

    let seen = format!(
        "not handled: {}/{}@{} id={} correlation_id=req-{POISON} attempt=3: ",
        shop.topic,
        poison.partition,
        poison.offset,
        poison.id()
    );
    let stops = async || {
        assert!(consumer.exited().unwrap().is_none(), "the consumer ended:\n{}", said());
        let acknowledged = kafka::acknowledged(&shared::kafka(), &shop.topic, &group).await;
        (said().contains(&seen) && acknowledged == reached && shipped(&mut connection).await == reachable)
            .then_some(())
    };
    eventually(&format!("it stops at the poison and says so: {seen}"), SOON, stops).await;

    run(&mut connection, "alter table shipment alter amount_cents drop not null").await.unwrap();
    let goes_on = async || {
        let acknowledged = kafka::acknowledged(&shared::kafka(), &shop.topic, &group).await;
        (acknowledged == ends(&records)).then_some(())
    };
    eventually("everything is acknowledged", SOON, goes_on).await;
    assert_eq!(shipped(&mut connection).await, Vec::from_iter(1..=ORDERS), "{}", said());
    let absorbed = text(&mut connection, "select sum(duplicates) from inbox.handled").await.unwrap();
    assert_eq!(absorbed, (records.len() - copies.len()).to_string());
    let traced = "select count(*) from inbox.handled h join outbox.message m using (id, correlation_id)
        where h.consumer = 'shipping' and h.topic = m.topic and h.record_offset is not null";
    assert_eq!(text(&mut connection, traced).await.unwrap(), ORDERS.to_string());
    consumer.signal(Signal::SIGTERM).unwrap();
    consumer.ended(SOON).await.unwrap();
}

/// An outbox with the orders that a recipe's producer wrote, published with copies.
struct Shop {
    database: Database,
    topic: String,
    /// The role of the consumer, which may do no more than it must.
    consumer: String,
}

impl Shop {
    async fn open(recipe: &Recipe) -> Self {
        let database = Database::create().await;
        let topic = kafka::unique_topic("recipe");
        kafka::create_topic(&shared::kafka(), &topic, 2, &[]).await;
        let (producer, consumer) = (database.role("producer").await, database.role("consumer").await);
        let outbox = migrator(&database.url(), "outbox");
        outbox.apply().await.unwrap();
        let writer = GrantRoles { writer: Some(producer.parse().unwrap()), ..GrantRoles::default() };
        outbox.grant(&writer).await.unwrap();
        let inbox = inbox_migrator(&database.url(), "inbox");
        inbox.apply().await.unwrap();
        let claims = GrantRoles { consumer: Some(consumer.parse().unwrap()), ..GrantRoles::default() };
        inbox.grant(&claims).await.unwrap();
        let mut connection = database.connect().await;
        let grants = format!("grant insert on orders to {producer}; grant insert on shipment to {consumer}");
        run(&mut connection, &format!("{TABLES} {grants}")).await.unwrap();

        produce(recipe.producer(), &[recipe.url(&database.url_as(&producer)), topic.clone()]).await;
        let written =
            "select count(*) from outbox.message m join orders o on m.correlation_id = 'req-' || o.id
            and m.key = o.customer and convert_from(m.payload, 'UTF8')::jsonb
                = jsonb_build_object('order', o.id, 'amount_cents', o.amount_cents)";
        assert_eq!(text(&mut connection, written).await.unwrap(), ORDERS.to_string());

        let setup = Setup::new(BINARY, &database.url(), &shared::kafka());
        let mut killed = setup.clone().variable("OUTBOXD_FAILPOINT", "settling:1").spawn();
        assert!(killed.ended(SOON).await.signal().is_some());
        let mut relay = setup.start().await;
        checker::dealt_with(&database.url(), SOON).await;
        assert!(relay.terminate(SOON).await.success());
        Self { database, topic, consumer }
    }
}

/// Runs a producer to its end.
async fn produce(mut command: Command, arguments: &[String]) {
    let directory = TempDir::new().unwrap();
    let orders = directory.path().join("orders");
    let line = |order| match order {
        POISON => format!("{order} customer-{}\n", order % 4),
        _ => format!("{order} customer-{} {}\n", order % 4, order * 100),
    };
    std::fs::write(&orders, (1..=ORDERS).map(line).collect::<String>()).unwrap();
    command.args(arguments).stdin(File::open(&orders).unwrap());
    let output = tokio::process::Command::from(command).kill_on_drop(true).output();
    let output = tokio::time::timeout(SOON, output).await.unwrap().unwrap();
    assert!(output.status.success(), "the producer: {}", String::from_utf8_lossy(&output.stderr));
}

/// The orders that were shipped, as often as they were.
async fn shipped(connection: &mut PgConnection) -> Vec<i64> {
    let sql = "select coalesce(array_agg(order_id order by order_id), '{}') from shipment";
    sqlx::query_scalar(sql).fetch_one(connection).await.unwrap()
}
