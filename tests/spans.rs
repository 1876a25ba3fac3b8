//! Spans as a collector gets them: one trace from the application over the outbox to Kafka, sampled as its root decided, and a relay
//! that no collector can slow or stop.

use std::net::TcpListener;
use std::time::Duration;

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::WithExportConfig as _;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use outbox_client::{CorrelationLayer, Intent};
use outboxd_kafka::MockBroker;
use outboxd_testkit::kafka::{self, Consumed};
use outboxd_testkit::postgres::Database;
use outboxd_testkit::relay::{Relay, Setup, eventually};
use outboxd_testkit::shared;
use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection, SqliteConnection};
use tempfile::TempDir;
use tokio::time::Instant;
use tracing::Instrument as _;
use tracing::subscriber::DefaultGuard;
use tracing_subscriber::layer::SubscriberExt as _;
use uuid::Uuid;

use self::receiver::{ReceivedSpan, Receiver};
use crate::support::{BINARY, Place, SOON, certificates};

pub(crate) mod receiver;

/// An application that traces, and exports its spans.
pub(crate) struct Application {
    provider: SdkTracerProvider,
    _subscribed: DefaultGuard,
}

impl Application {
    /// From here on this test's own spans are the application's.
    pub(crate) fn tracing_to(receiver: Option<&Receiver>, service: &'static str) -> Self {
        let mut provider = SdkTracerProvider::builder()
            .with_resource(Resource::builder_empty().with_service_name(service).build());
        if let Some(receiver) = receiver {
            let exporter = opentelemetry_otlp::SpanExporter::builder()
                .with_http()
                .with_endpoint(format!("{}/v1/traces", receiver.endpoint()))
                .build()
                .unwrap();
            provider = provider.with_batch_exporter(exporter);
        }
        let provider = provider.build();
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer(service));
        let subscriber = tracing_subscriber::registry().with(CorrelationLayer).with(layer);
        Self { provider, _subscribed: tracing::subscriber::set_default(subscriber) }
    }

    pub(crate) fn flush(&self) {
        self.provider.force_flush().unwrap();
    }
}

/// A relay's setup that exports to the receiver, soon.
pub(crate) fn exporting(setup: &Setup, endpoint: &str) -> Setup {
    setup.clone().variable("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint).variable("OTEL_BSP_SCHEDULE_DELAY", 50)
}

async fn place(purpose: &str) -> (Database, Place) {
    let database = Database::create().await;
    let place = Place::install(&database.url(), &shared::kafka(), purpose).await;
    (database, place)
}

async fn record_of(place: &Place, id: Uuid) -> Consumed {
    let records = kafka::read_at_least(&place.bootstrap, &place.topic, 1, SOON).await;
    records.into_iter().find(|record| record.id() == id).unwrap()
}

pub(crate) fn named<'s>(spans: &'s [ReceivedSpan], name: &str) -> &'s ReceivedSpan {
    let mut found = spans.iter().filter(|span| span.name() == name);
    let one = found.next().unwrap_or_else(|| panic!("no span {name} in {spans:#?}"));
    assert!(found.next().is_none(), "one span {name}: {spans:#?}");
    one
}

/// Writes an intent with this trace context.
async fn emit_traced(
    connection: &mut PgConnection,
    topic: &str,
    traceparent: Option<&str>,
    bytes: i32,
) -> Uuid {
    sqlx::query_scalar(
        "insert into outbox.message (topic, key, payload, traceparent)
         values ($1, 'k', convert_to(repeat('x', $3), 'UTF8'), $2) returning id",
    )
    .bind(topic)
    .bind(traceparent)
    .bind(bytes)
    .fetch_one(connection)
    .await
    .unwrap()
}

#[tokio::test]
async fn one_trace_shows_the_application_the_wait_in_the_outbox_and_the_publishing() {
    let Some(receiver) = Receiver::start().await else { return };
    let application = Application::tracing_to(Some(&receiver), "shop");
    let (database, place) = place("traced").await;
    let setup = exporting(&place.setup, receiver.endpoint())
        .set("relay.instance", "relay-1")
        .variable("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=a-test");
    let mut relay = setup.start().await;

    let mut connection = database.connect().await;
    let checkout = async {
        let intent = Intent::to(&place.topic).key("k3y-canary").payload_text("p4yload-canary");
        outbox_client::postgres::Outbox::new().emit(&mut connection, &intent).await.unwrap()
    };
    let id = checkout.instrument(tracing::info_span!("checkout", correlation_id = "req-8f2e")).await;
    application.flush();
    let of_message = receiver.spans_of(id, 2).await;
    let all = receiver.spans();
    let checkout = named(&all, "checkout");
    let wait = named(&of_message, "outbox wait");
    let send = named(&of_message, &format!("send {}", place.topic));

    for span in [wait, send] {
        assert_eq!(span.trace(), checkout.trace());
        assert_eq!(span.parent(), checkout.id());
        assert_eq!(span.attribute("messaging.message.conversation_id"), "req-8f2e");
        assert_eq!(span.status(), (0, ""));
    }
    assert_eq!((wait.kind(), send.kind()), (1, 4));
    assert_eq!(send.links(), [(checkout.trace().to_owned(), checkout.id().to_owned())]);
    assert!(wait.ended() == send.began() && wait.began() < wait.ended() && send.began() < send.ended());

    let record = record_of(&place, id).await;
    let expected = json!({
        "messaging.system": "kafka",
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.destination.name": place.topic,
        "messaging.destination.partition.id": record.partition.to_string(),
        "messaging.kafka.offset": record.offset,
        "messaging.message.id": id.to_string(),
        "messaging.message.body.size": 14,
        "messaging.client.id": "relay-1",
        "outboxd.attempt": 1,
        "error.type": null,
    });
    for (name, value) in expected.as_object().unwrap() {
        assert_eq!(&send.attribute(name), value, "{name}");
    }
    let resource = ["service.name", "service.instance.id", "deployment.environment.name"];
    assert_eq!(resource.map(|name| send.resource(name)), ["outboxd", "relay-1", "a-test"].map(Value::from));
    assert_eq!(checkout.resource("service.name"), "shop");

    let stored: String = sqlx::query_scalar("select traceparent from outbox.message where id = $1")
        .bind(id)
        .fetch_one(&mut connection)
        .await
        .unwrap();
    assert_eq!(stored, format!("00-{}-{}-01", checkout.trace(), checkout.id()));
    assert_eq!(record.header("traceparent"), Some(stored.as_str()), "as it was stored, byte for byte");
    assert_eq!(record.header("correlation-id"), Some("req-8f2e"));
    assert!(relay.terminate(SOON).await.success());
    relay.expect_no_surprises(&[]);
    for secret in ["k3y-canary", "p4yload-canary"] {
        assert!(!receiver.text().contains(secret), "{secret} is the application's");
    }
}

#[tokio::test]
async fn a_trace_that_is_not_sampled_is_not_exported_and_what_has_none_begins_one() {
    let Some(receiver) = Receiver::start().await else { return };
    let (database, place) = place("sampled").await;
    let mut connection = database.connect().await;
    let unsampled = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";
    let unsampled = emit_traced(&mut connection, &place.topic, Some(unsampled), 10).await;
    let untraced = emit_traced(&mut connection, &place.topic, None, 10).await;
    let damaged = emit_traced(&mut connection, &place.topic, Some("no such thing"), 10).await;
    // The delay never comes: what arrives was flushed at the end.
    let setup = exporting(&place.setup, receiver.endpoint()).variable("OTEL_BSP_SCHEDULE_DELAY", 3_600_000);
    let mut relay = setup.start().await;
    place.account().await.assert_all_published(0);
    assert_eq!(receiver.text(), "");
    assert!(relay.terminate(SOON).await.success());
    relay.expect_no_surprises(&[]);

    assert!(
        !receiver.text().contains(&unsampled.to_string()) && !receiver.text().contains("0af7651916cd43dd")
    );
    for id in [untraced, damaged] {
        let spans = receiver.spans_of(id, 2).await;
        let (wait, send) = (named(&spans, "outbox wait"), named(&spans, &format!("send {}", place.topic)));
        assert_eq!((wait.parent(), send.parent()), ("", wait.id()));
        assert_eq!(send.trace(), wait.trace());
        assert!(send.links().is_empty());
    }

    // And a sampler decides about what begins here, and about nothing else.
    let setup = exporting(&place.setup, receiver.endpoint())
        .variable("OTEL_TRACES_SAMPLER", "parentbased_always_off")
        .variable("OTEL_SERVICE_NAME", "shop-relay");
    let mut relay = setup.start().await;
    let untraced = emit_traced(&mut connection, &place.topic, None, 10).await;
    let sampled = "00-1af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let sampled = emit_traced(&mut connection, &place.topic, Some(sampled), 10).await;
    let spans = receiver.spans_of(sampled, 2).await;
    assert!(spans.iter().all(|span| span.resource("service.name") == "shop-relay"));
    assert!(relay.terminate(SOON).await.success());
    assert!(!receiver.text().contains(&untraced.to_string()));
}

#[tokio::test]
async fn a_failed_attempt_is_a_span_with_an_error_and_the_next_one_another() {
    let Some(receiver) = Receiver::start().await else { return };
    let (database, place) = place("failed").await;
    let mut connection = database.connect().await;
    let id: Uuid = sqlx::query_scalar(
        "insert into outbox.message (topic, key, payload, partition, traceparent)
         values ($1, 'k', 'x', 3, '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01') returning id",
    )
    .bind(&place.topic)
    .fetch_one(&mut connection)
    .await
    .unwrap();
    let mut relay = exporting(&place.setup, receiver.endpoint()).start().await;
    let spans = receiver.spans_of(id, 1).await;
    let refused = named(&spans, &format!("send {}", place.topic));
    assert_eq!(refused.status(), (2, "partition 3 does not exist: the topic has 3"));
    assert_eq!(refused.attribute("error.type"), "no_such_partition");
    assert_eq!(refused.attribute("outboxd.outcome"), "parked");
    assert_eq!(refused.attribute("messaging.kafka.offset"), Value::Null);

    kafka::add_partitions(&place.bootstrap, &place.topic, 4).await;
    place.setup.run_ok(&["held", "retry", &id.to_string(), "--reason", "the partition is there"]).await;
    let sent = |span: &&ReceivedSpan| span.attribute("messaging.kafka.offset") != Value::Null;
    let accepted = eventually("it is sent", SOON, async || {
        let spans = receiver.spans_of(id, 1).await;
        spans.iter().find(sent).cloned()
    })
    .await;
    assert_eq!(accepted.attribute("outboxd.attempt"), 2);
    assert_eq!(accepted.attribute("messaging.destination.partition.id"), "3");
    assert_eq!((accepted.trace(), accepted.parent()), (refused.trace(), refused.parent()));
    assert_eq!(accepted.status(), (0, ""));
    assert!(relay.terminate(SOON).await.success());
}

#[tokio::test]
async fn a_collector_behind_tls_is_verified_and_takes_compressed_spans() {
    let (authority, certificate, key) = certificates();
    let (other_authority, _, _) = certificates();
    let Some(receiver) = Receiver::start_with(Some((&certificate, &key))).await else { return };
    let (_broker, directory, url, setup) = small_place().await;
    let trusting = |name: &str, authority: &str| {
        let file = directory.path().join(name);
        std::fs::write(&file, authority).unwrap();
        exporting(&setup, receiver.endpoint())
            .variable("SSL_CERT_FILE", file.display())
            .variable("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
    };
    let exported = "outboxd_spans_exported_total";
    let mut relay = trusting("authority.pem", &authority).start().await;
    emit_many(&url, 3).await;
    relay.wait_until("all is exported", SOON, |metrics| metrics.sum(exported, &[]) >= 6.0).await;
    assert!(relay.terminate(SOON).await.success());
    relay.expect_no_surprises(&[]);
    assert_eq!(receiver.spans().len(), 6);

    let mut relay = trusting("other.pem", &other_authority).start().await;
    emit_many(&url, 3).await;
    let metrics = relay
        .wait_until("all is dropped", SOON, |metrics| metrics.sum("outboxd_spans_dropped_total", &[]) >= 6.0)
        .await;
    assert_eq!(metrics.sum(exported, &[]), 0.0);
    assert!(relay.terminate(SOON).await.success());
    assert_eq!(receiver.spans().len(), 6, "whoever it is, it is not the one that is trusted");
}

/// An outbox in a file and a broker in this process, which cost a test little.
async fn small_place() -> (MockBroker, TempDir, String, Setup) {
    let broker = MockBroker::start().unwrap();
    broker.create_topic("orders", 1).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", directory.path().join("shop.db").display());
    let setup = Setup::new(BINARY, &url, broker.bootstrap_servers());
    setup.run_ok(&["migrate"]).await;
    (broker, directory, url, setup)
}

async fn emit_many(url: &str, messages: i64) {
    let mut database = SqliteConnection::connect(url).await.unwrap();
    sqlx::query(
        "with recursive n(i) as (select 1 union all select i + 1 from n where i < ?1)
         insert into outbox_message (topic, key, payload) select 'orders', 'k' || i, 'x' from n",
    )
    .bind(messages)
    .execute(&mut database)
    .await
    .unwrap();
}

async fn all_dispatched(relay: &mut Relay, messages: f64) {
    relay
        .wait_until("everything is dispatched", SOON, |metrics| {
            metrics.sum("outboxd_dispatched_total", &[]) >= messages
        })
        .await;
}

fn warnings(relay: &Relay) -> Vec<String> {
    relay.logged().into_iter().filter(|line| line.level() == Some("WARN")).map(|line| line.text).collect()
}

#[tokio::test]
async fn a_collector_that_is_not_there_costs_spans_and_one_warning_and_nothing_else() {
    let (_broker, _directory, url, setup) = small_place().await;
    let mut relay = exporting(&setup, "http://127.0.0.1:1").start().await;
    for round in [100.0, 200.0, 300.0] {
        emit_many(&url, 100).await;
        all_dispatched(&mut relay, round).await;
    }
    let dropped = |metrics: &outboxd_testkit::relay::Metrics| {
        metrics.sum("outboxd_spans_dropped_total", &[("reason", "export_failed")])
    };
    let metrics =
        relay.wait_until("what was dropped is counted", SOON, |metrics| dropped(metrics) >= 600.0).await;
    assert_eq!(dropped(&metrics), 600.0);
    assert_eq!(metrics.sum("outboxd_spans_exported_total", &[]), 0.0);
    assert!(relay.terminate(SOON).await.success());
    let warnings = warnings(&relay);
    assert!(warnings.len() == 1 && warnings[0].contains("spans cannot be exported"), "{warnings:#?}");
}

#[tokio::test]
async fn a_collector_that_never_answers_fills_a_bounded_queue_and_the_drain_does_not_wait_for_it() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    let (_broker, _directory, url, setup) = small_place().await;
    let setup = exporting(&setup, &endpoint)
        .variable("OTEL_BSP_MAX_QUEUE_SIZE", 100)
        .variable("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 100)
        .set("shutdown.grace_ms", 3_000);
    let mut relay = setup.start().await;
    emit_many(&url, 500).await;
    all_dispatched(&mut relay, 500.0).await;
    let metrics = relay.metrics().await.unwrap();
    let full = metrics.sum("outboxd_spans_dropped_total", &[("reason", "queue_full")]);
    assert_eq!(full, 900.0, "two spans a message, of which a hundred wait: {metrics}");
    let asked = Instant::now();
    assert!(relay.terminate(SOON).await.success());
    assert!(asked.elapsed() < Duration::from_secs(8), "{:?}", asked.elapsed());
    let warnings = warnings(&relay);
    assert!(warnings.iter().any(|line| line.contains("spans are lost")), "{warnings:#?}");
}

#[tokio::test]
async fn what_the_relay_cannot_export_to_is_named_and_nothing_is_exported() {
    let (_broker, _directory, url, setup) = small_place().await;
    let setup = exporting(&setup, "http://127.0.0.1:1").variable("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc");
    let mut relay = setup.start().await;
    emit_many(&url, 10).await;
    all_dispatched(&mut relay, 10.0).await;
    assert!(relay.terminate(SOON).await.success());
    let warnings = warnings(&relay);
    assert!(warnings.len() == 1 && warnings[0].contains("OTEL_EXPORTER_OTLP_PROTOCOL=grpc"), "{warnings:#?}");
}

#[tokio::test]
async fn without_an_endpoint_nothing_is_exported_and_nothing_said() {
    let (_broker, _directory, url, setup) = small_place().await;
    let mut relay = setup.variable("OTEL_SERVICE_NAME", "shop-relay").start().await;
    emit_many(&url, 10).await;
    all_dispatched(&mut relay, 10.0).await;
    let no_thread = eventually("the relay's threads", SOON, async || Some(relay.threads())).await;
    assert!(!no_thread.iter().any(|name| name.starts_with("OpenTelemetry")), "{no_thread:?}");
    assert!(relay.terminate(SOON).await.success());
    relay.expect_no_surprises(&[]);
    assert!(relay.logged().iter().all(|line| !line.text.contains("outboxd::spans")));
}
