//! One id through everything: from service to service with no code of the user's, and through the relay's log.

use std::sync::Mutex;

use anyhow::Context as _;
use outbox_client::Intent;
use outbox_client::postgres::{Inbox, Outbox};
use outboxd_testkit::kafka::{self, Consumed};
use outboxd_testkit::postgres::Database;
use outboxd_testkit::relay::{LogLine, Setup, eventually};
use outboxd_testkit::shared;
use rdkafka::ClientConfig;
use rdkafka::consumer::{Consumer as _, StreamConsumer};
use rdkafka::message::BorrowedMessage;
use serde_json::Value;
use sqlx::{PgConnection, PgPool};
use tracing::Instrument as _;
use uuid::Uuid;

use crate::inbox::inbox_migrator;
use crate::inbox::once::{Failure, consume};
use crate::spans::receiver::Receiver;
use crate::spans::{Application, exporting, named};
use crate::support::{BINARY, SOON};

/// A service with a database and an outbox of its own.
struct Service {
    database: Database,
    topic: String,
    setup: Setup,
}

impl Service {
    async fn install(purpose: &str, receiver: Option<&Receiver>) -> Self {
        let database = Database::create().await;
        let mut setup = Setup::new(BINARY, &database.url(), &shared::kafka());
        setup.run_ok(&["migrate"]).await;
        if let Some(receiver) = receiver {
            setup = exporting(&setup, receiver.endpoint());
        }
        let topic = kafka::unique_topic(purpose);
        kafka::create_topic(&shared::kafka(), &topic, 1, &[]).await;
        Self { database, topic, setup }
    }

    async fn record(&self) -> Consumed {
        kafka::read_at_least(&shared::kafka(), &self.topic, 1, SOON).await.remove(0)
    }
}

/// The trace id of a `traceparent` header.
fn trace(record: &Consumed) -> &str {
    record.header("traceparent").and_then(|header| header.split('-').nth(1)).unwrap()
}

/// What handles an order: it emits, and says nothing of where that comes from.
async fn ship(transaction: &mut PgConnection, topic: &str) -> anyhow::Result<()> {
    let intent = Intent::to(topic).key("order-17").payload_text("shipped");
    Outbox::new().emit(transaction, &intent).await.context("emit")?;
    Ok(())
}

#[tokio::test]
async fn a_message_that_a_handler_emits_is_correlated_caused_and_traced_with_no_code_of_the_users() {
    let receiver = Receiver::start().await;
    let application = Application::tracing_to(receiver.as_ref(), "shop");
    let (shop, shipping) = (
        Service::install("orders", receiver.as_ref()).await,
        Service::install("shipments", receiver.as_ref()).await,
    );
    inbox_migrator(&shipping.database.url(), "inbox").apply().await.unwrap();
    let mut relays = [shop.setup.start().await, shipping.setup.start().await];

    let mut connection = shop.database.connect().await;
    let order = Intent::to(&shop.topic).key("order-17").payload_text("placed");
    let placed = async { Outbox::new().emit(&mut connection, &order).await.unwrap() }
        .instrument(tracing::info_span!("checkout", correlation_id = "req-8f2e"))
        .await;

    let consumer: StreamConsumer = ClientConfig::new()
        .set("bootstrap.servers", shared::kafka())
        .set("group.id", format!("shipping-{}", shop.topic))
        .set("enable.auto.commit", "false")
        .set("auto.offset.reset", "earliest")
        .create()
        .unwrap();
    consumer.subscribe(&[&shop.topic]).unwrap();
    let pool = PgPool::connect(&shipping.database.url()).await.unwrap();
    let inbox = Inbox::of("shipping");
    let failures = Mutex::new(Vec::new());
    let handle = async |transaction: &mut PgConnection, _: &BorrowedMessage<'_>| {
        ship(transaction, &shipping.topic).await
    };
    let report = |failure: &Failure| failures.lock().unwrap().push(format!("{failure:?}"));
    let shipped = tokio::select! {
        ended = consume(&consumer, &pool, &inbox, handle, report) => panic!("the consumer ended: {ended:?}"),
        shipped = shipping.record() => shipped,
    };
    assert!(failures.lock().unwrap().is_empty(), "{failures:?}");

    let ordered = shop.record().await;
    assert_eq!(ordered.id(), placed);
    for record in [&ordered, &shipped] {
        assert_eq!(record.header("correlation-id"), Some("req-8f2e"));
    }
    assert_eq!(ordered.header("causation-id"), None);
    assert_eq!(shipped.header("causation-id"), Some(placed.to_string().as_str()));
    assert_eq!(trace(&ordered), trace(&shipped));
    assert_ne!(ordered.header("traceparent"), shipped.header("traceparent"), "a span of its own");
    if let Some(receiver) = &receiver {
        application.flush();
        one_trace(receiver, [(&shop, placed), (&shipping, shipped.id())]).await;
    }
    for relay in &mut relays {
        assert!(relay.terminate(SOON).await.success());
        relay.expect_no_surprises(&[]);
    }
}

/// The trace of a message and the one that it caused, from the first application to the second publishing.
async fn one_trace(receiver: &Receiver, [(shop, placed), (shipping, shipped)]: [(&Service, Uuid); 2]) {
    let first = receiver.spans_of(placed, 3).await;
    let second = receiver.spans_of(shipped, 2).await;
    let all = receiver.spans();
    let checkout = named(&all, "checkout");
    let process = named(&first, "process");
    let sent =
        [named(&first, &format!("send {}", shop.topic)), named(&second, &format!("send {}", shipping.topic))];
    assert_eq!((process.kind(), process.parent()), (5, checkout.id()));
    assert_eq!(process.links(), [(checkout.trace().to_owned(), checkout.id().to_owned())]);
    assert_eq!(process.attribute("messaging.operation.type"), "process");
    assert_eq!(process.attribute("messaging.destination.name"), shop.topic);
    assert_eq!(process.attribute("messaging.kafka.offset"), sent[0].attribute("messaging.kafka.offset"));
    assert_eq!((sent[0].parent(), sent[1].parent()), (checkout.id(), process.id()));
    assert!([process, sent[0], sent[1]].iter().all(|span| span.trace() == checkout.trace()));
    assert_eq!(sent[1].attribute("outboxd.causation_id"), placed.to_string());
}

/// The lines that somebody finds who has nothing but a correlation id: level, message id, text.
fn story<'l>(logged: &'l [LogLine], correlation_id: &str) -> Vec<(&'l str, &'l Value)> {
    let lines = logged.iter().filter_map(|line| line.json.as_ref());
    lines
        .filter(|line| line["correlation_id"] == correlation_id)
        .map(|line| (line["level"].as_str().unwrap(), line))
        .collect()
}

#[tokio::test]
async fn the_story_of_a_message_that_failed_is_found_in_the_log_by_its_correlation_id() {
    let service = Service::install("story", None).await;
    let mut connection = service.database.connect().await;
    let emit = async |connection: &mut PgConnection, correlation_id: &str, partition| {
        let intent = Intent::to(&service.topic).key("k3y").correlation_id(correlation_id).payload_text("x");
        Outbox::new().emit(connection, &intent.partition(partition)).await.unwrap()
    };
    let bad = emit(&mut connection, "req-bad", 1).await;
    emit(&mut connection, "req-behind", 0).await;
    let mut relay = service.setup.start().await;
    relay
        .wait_until("both are held", SOON, |metrics| {
            metrics.sum("outboxd_parked_total", &[]) > 0.0 && metrics.sum("outboxd_held_total", &[]) > 0.0
        })
        .await;
    assert!(relay.terminate(SOON).await.success());
    let logged = relay.logged();
    let told = story(&logged, "req-bad");
    let [("ERROR", parked)] = told.as_slice() else { panic!("{told:#?}") };
    assert_eq!(parked["message_id"], bad.to_string());
    assert_eq!((&parked["reason"], &parked["attempts"]), (&"no_such_partition".into(), &1.into()));
    assert!(parked["error"].as_str().unwrap().contains("partition 1 does not exist"), "{parked}");
    assert!(story(&logged, "req-behind").is_empty(), "what only waits is no story at this level");

    kafka::add_partitions(&shared::kafka(), &service.topic, 2).await;
    let mut relay = service.setup.start().await;
    service.setup.run_ok(&["held", "retry", &bad.to_string(), "--reason", "the partition is there"]).await;
    relay
        .wait_until("both are dispatched", SOON, |metrics| metrics.sum("outboxd_dispatched_total", &[]) > 1.0)
        .await;
    assert!(relay.terminate(SOON).await.success());
    let logged = relay.logged();
    let told = story(&logged, "req-bad");
    let (_, acknowledged) =
        told.iter().find(|(level, _)| *level == "INFO").unwrap_or_else(|| panic!("{told:#?}"));
    assert_eq!((&acknowledged["message_id"], &acknowledged["failed"]), (&bad.to_string().into(), &1.into()));
    assert!(acknowledged["offset"].is_u64() && acknowledged["partition"].is_u64(), "{acknowledged}");
}

#[tokio::test]
async fn a_row_that_cannot_be_read_is_named_by_the_error_that_it_causes() {
    let service = Service::install("odd", None).await;
    let mut connection = service.database.connect().await;
    let odd = Uuid::new_v4();
    let past_the_check = format!(
        "alter table outbox.message drop constraint message_headers;
         insert into outbox.message (topic, payload, headers, id, correlation_id) values ('{}', 'x', '[]', '{odd}', 'req-odd')",
        service.topic
    );
    crate::migrations::run(&mut connection, &past_the_check).await.unwrap();
    let mut relay = service.setup.start().await;
    let named = format!("read message {odd} with correlation id req-odd: ");
    eventually("it is named", SOON, async || {
        relay.logged().iter().any(|line| line.text.contains(&named)).then_some(())
    })
    .await;
    assert!(relay.terminate(SOON).await.success());
}
