//! Real TLS, SCRAM and access control: what a principal needs, and how it is told what it lacks.

use std::time::Duration;

use outboxd_core::{Fault, HoldReason, TopicInfo};
use outboxd_engine::{Publisher as _, Severity, Token, TopicState};
use outboxd_kafka::{KafkaConfig, OutboxFacts};
use outboxd_testkit::kafka::{Broker, Options, create_topic, read_all, unique_topic};
use outboxd_testkit::wait;
use tokio::time::timeout;

use crate::support::certificates;

use super::{LIMIT, deliver, fault, kafka_tool, look_up, receipts, record, run, with_client, writable};

const USER: &str = "relay";
const PASSWORD: &str = "correct horse";

/// A certificate authority in PEM and a broker that has a certificate of it.
struct Secured {
    broker: Broker,
    authority: String,
}

impl Secured {
    async fn start() -> Self {
        let (authority, certificate, key) = certificates();
        let pem = |text: &str| text.trim().replace('\n', "\\n\\\n ");
        let options = Options::default()
            .user(USER, "never asked for: SCRAM below")
            .property(
                "listener.security.protocol.map",
                "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL:SASL_SSL",
            )
            .property("sasl.enabled.mechanisms", "SCRAM-SHA-512")
            .property(
                "listener.name.sasl.scram-sha-512.sasl.jaas.config",
                "org.apache.kafka.common.security.scram.ScramLoginModule required;",
            )
            .property("listener.name.sasl.ssl.keystore.type", "PEM")
            .property("listener.name.sasl.ssl.keystore.certificate.chain", &pem(&certificate))
            .property("listener.name.sasl.ssl.keystore.key", &pem(&key));
        let broker = Broker::start(options).await.unwrap();
        add_scram_user(&broker.bootstrap());
        Self { broker, authority }
    }

    fn config(&self) -> KafkaConfig {
        let mut config =
            KafkaConfig { look_up_within: Duration::from_secs(5), ..KafkaConfig::new(self.broker.sasl()) };
        for (key, value) in [
            ("security.protocol", "sasl_ssl"),
            ("sasl.mechanism", "SCRAM-SHA-512"),
            ("sasl.username", USER),
            ("sasl.password", PASSWORD),
            ("ssl.ca.pem", &self.authority),
        ] {
            config.properties.insert(key.to_owned(), value.to_owned());
        }
        config
    }

    fn config_with(&self, key: &str, value: &str) -> KafkaConfig {
        let mut config = self.config();
        config.properties.insert(key.to_owned(), value.to_owned());
        config
    }
}

/// With Kafka's own tool, because no other client can.
fn add_scram_user(bootstrap: &str) {
    let mut tool = kafka_tool("kafka.admin.ConfigCommand");
    tool.args(["--bootstrap-server", bootstrap, "--alter", "--entity-type", "users", "--entity-name", USER])
        .args(["--add-config", &format!("SCRAM-SHA-512=[iterations=4096,password={PASSWORD}]")]);
    run(&mut tool);
}

#[tokio::test]
async fn write_and_describe_on_a_topic_are_enough_and_nothing_less_is() {
    let secured = Secured::start().await;
    let open = secured.broker.bootstrap();
    let (allowed, closed, describe_only) =
        (unique_topic("allowed"), unique_topic("closed"), unique_topic("describe"));
    for topic in [&allowed, &closed, &describe_only] {
        create_topic(&open, topic, 2, &[("max.message.bytes", "500000")]).await;
    }
    secured.broker.allow(USER, &["Write", "Describe"], &allowed).unwrap();
    secured.broker.allow(USER, &["Describe"], &describe_only).unwrap();

    let config = KafkaConfig { message_max_bytes: 400_000, ..secured.config() };
    let mut publisher = with_client(config.clone()).await;
    let info = writable(&publisher, &allowed).await;
    assert_eq!(info.partitions, 2);
    assert_eq!(info.max_message_bytes, 400_000, "without DESCRIBE_CONFIGS the limit is the configured one");
    receipts(&deliver(&mut publisher, vec![record(&allowed, None, "1")]).await);
    assert_eq!(read_all(&open, &allowed).await.len(), 1);

    let unauthorised = TopicState::Held(HoldReason::TopicUnauthorized);
    assert_eq!(look_up(&publisher, &closed).await, unauthorised);

    // Who may describe a topic and not write to it is only found out by writing; then the look-up says so for a while.
    assert!(matches!(look_up(&publisher, &describe_only).await, TopicState::Writable(_)));
    let reports = deliver(&mut publisher, vec![record(&describe_only, None, "1")]).await;
    assert_eq!(fault(&reports[0]), Some(Fault::TopicUnauthorized));
    assert_eq!(look_up(&publisher, &describe_only).await, unauthorised);
    assert!(!publisher.must_renew());
    receipts(&deliver(&mut publisher, vec![record(&allowed, None, "2")]).await);

    let findings = outboxd_kafka::inspect(
        &config,
        &[allowed.clone(), closed.clone(), describe_only.clone()],
        OutboxFacts { intent_max_bytes: Some(100_000), ..OutboxFacts::default() },
    )
    .await;
    let of = |topic: &str| -> Vec<Severity> {
        let check = format!("topic {topic}");
        findings.iter().filter(|finding| finding.check == check).map(|finding| finding.severity).collect()
    };
    assert_eq!(of(&allowed), [Severity::Ok, Severity::Warning], "its limit cannot be read");
    assert_eq!(of(&closed), [Severity::Error]);
    assert_eq!(of(&describe_only), [Severity::Ok, Severity::Warning]);
    let described =
        findings.iter().find(|finding| finding.check == format!("topic {describe_only}")).unwrap();
    assert!(described.found.contains("WRITE shows only when the relay writes"), "{described:?}");

    secured.broker.allow(USER, &["DescribeConfigs"], &allowed).unwrap();
    wait::until("the topic's own limit is read", LIMIT, || async {
        let state = look_up(&publisher, &allowed).await;
        let own = TopicState::Writable(TopicInfo { partitions: 2, max_message_bytes: 500_000 });
        Ok((state == own).then_some(()))
    })
    .await
    .unwrap();
    secured.broker.allow(USER, &["Write", "Describe"], &closed).unwrap();
    writable(&publisher, &closed).await;
    publisher.renew().await;
    receipts(&deliver(&mut publisher, vec![record(&closed, None, "1")]).await);
}

/// D4. Also when nobody is let in.
#[tokio::test]
async fn refused_credentials_and_certificates_are_told_and_never_a_messages_fault() {
    let secured = Secured::start().await;
    let topic = unique_topic("unreached");
    create_topic(&secured.broker.bootstrap(), &topic, 1, &[]).await;
    let (other_authority, ..) = certificates();
    for (config, code) in [
        (secured.config_with("sasl.password", "canary-password"), "Authentication"),
        (secured.config_with("ssl.ca.pem", &other_authority), "SSL"),
    ] {
        let mut publisher = with_client(config.clone()).await;
        publisher.enqueue(Token(0), record(&topic, None, "x")).unwrap();
        let told = wait::until_true("the client is refused", LIMIT, || {
            publisher
                .last_error()
                .is_some_and(|error| error.fault == Fault::Authentication && error.code == code)
        });
        told.await.unwrap();
        let state = look_up(&publisher, &topic).await;
        let TopicState::Unreachable(error) = state else { panic!("{state:?}") };
        assert_eq!(error.fault, Fault::Authentication);
        assert_eq!(publisher.last_error().map(|error| error.fault), Some(Fault::Authentication));
        let mut reports = Vec::new();
        let silence = timeout(Duration::from_millis(500), publisher.reports(&mut reports)).await;
        assert!(silence.is_err(), "the record waits: {reports:?}");
        assert_eq!(publisher.stats().queue_messages, 1);
        assert!(!publisher.must_renew());

        let findings =
            outboxd_kafka::inspect(&config, std::slice::from_ref(&topic), OutboxFacts::default()).await;
        let shown = format!("{findings:?} {publisher:?} {:?}", publisher.last_error());
        assert!(
            findings.iter().any(|finding| finding.check == "brokers" && finding.severity == Severity::Error)
        );
        assert!(!shown.contains("canary"), "{shown}");
    }
}
