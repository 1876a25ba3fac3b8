//! What `outboxd check` says about Kafka: findings with their remedies. Publishes nothing and creates nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use outboxd_core::record::topic_is_legal;
use outboxd_engine::{Finding, Severity};
use rdkafka::admin::{
    AdminClient, AdminOptions, ConfigResource, ConfigResourceResult, OwnedResourceSpecifier,
    ResourceSpecifier,
};
use rdkafka::error::KafkaError;
use rdkafka::metadata::{Metadata, MetadataTopic};
use rdkafka::producer::{Producer as _, ThreadedProducer};
use rdkafka::types::RDKafkaErrorCode;
use tokio::task::spawn_blocking;

use crate::config::KafkaConfig;
use crate::connection::Connection;
use crate::properties::{creation_reason, validate};

/// What a record has beside what the outbox counts of its intent: the batch, and the names of the headers.
const RECORD_OVERHEAD_BYTES: usize = 1_024;

/// What is known of the outbox that is to be published.
#[derive(Clone, Copy, Debug, Default)]
pub struct OutboxFacts<'a> {
    /// Bytes of the largest intent that it takes.
    pub intent_max_bytes: Option<usize>,
    /// The Kafka cluster that it is published to.
    pub kafka_cluster: Option<&'a str>,
}

/// Looks at the configuration, the brokers and these topics. Takes at most about `look_up_within` twice.
pub async fn inspect(config: &KafkaConfig, topics: &[String], outbox: OutboxFacts<'_>) -> Vec<Finding> {
    let mut findings = findings_about_the_configuration(config).await;
    if findings.iter().any(|finding| finding.severity == Severity::Error) {
        return findings;
    }
    let connection = Connection::silent();
    let within = config.look_up_within;
    let asked = {
        let (connecting, connection, topics) = (config.connecting(), connection.clone(), topics.to_vec());
        spawn_blocking(move || {
            let client = connecting.create_with_context(connection).map_err(NoAnswer::Client)?;
            ask(&client, &topics, within).map_err(NoAnswer::Brokers)
        })
        .await
    };
    let answers = match asked {
        Ok(Ok(answers)) => answers,
        Ok(Err(NoAnswer::Client(error))) => {
            findings.push(error_finding("kafka client", creation_reason(&error), "correct [kafka]"));
            return findings;
        }
        Ok(Err(NoAnswer::Brokers(error))) => {
            findings.push(unreachable(config, &connection, &error));
            return findings;
        }
        Err(error) => {
            findings.push(error_finding("brokers", error.to_string(), "report this as a bug"));
            return findings;
        }
    };
    findings.push(answers.brokers);
    findings.push(finding_about_the_cluster(answers.cluster.as_deref(), outbox.kafka_cluster));
    let intent_max_bytes = outbox.intent_max_bytes;
    let settings = settings_of(config, connection, topics).await;
    for (topic, metadata) in answers.topics {
        let asked = Asked { topic: &topic, settings: settings.get(&topic), config, intent_max_bytes };
        findings.extend(findings_about_a_topic(&asked, metadata.as_ref()));
    }
    findings
}

async fn findings_about_the_configuration(config: &KafkaConfig) -> Vec<Finding> {
    let checked = config.clone();
    let problems = spawn_blocking(move || validate(&checked)).await.unwrap_or_default();
    if problems.is_empty() {
        let mut findings = vec![ok_finding("kafka settings", "accepted".to_owned())];
        findings.extend(findings_about_security(config));
        return findings;
    }
    let finding = |problem: crate::PropertyProblem| {
        error_finding(
            "kafka settings",
            format!("kafka.{}: {}", problem.key, problem.reason),
            "correct or remove it",
        )
    };
    problems.into_iter().map(finding).collect()
}

fn findings_about_security(config: &KafkaConfig) -> Vec<Finding> {
    let property = |name: &str| config.properties.get(name).map(|value| value.to_ascii_lowercase());
    let protocol = property("security.protocol").unwrap_or_else(|| "plaintext".to_owned());
    let mut findings = Vec::new();
    if protocol == "sasl_plaintext" {
        findings.push(warning_finding(
            "kafka encryption",
            "credentials and records travel unencrypted (security.protocol=sasl_plaintext)".to_owned(),
            "set kafka.properties.\"security.protocol\" = \"sasl_ssl\"",
        ));
    }
    let unchecked = protocol.ends_with("ssl")
        && (property("ssl.endpoint.identification.algorithm").as_deref() == Some("none")
            || property("enable.ssl.certificate.verification").as_deref() == Some("false"));
    if unchecked {
        findings.push(warning_finding(
            "kafka encryption",
            "the brokers' certificates are not checked".to_owned(),
            "set ssl.ca.location and leave certificate and host name verification on",
        ));
    }
    findings
}

/// Why nothing was answered.
enum NoAnswer {
    Client(KafkaError),
    Brokers(KafkaError),
}

struct Answers {
    brokers: Finding,
    cluster: Option<String>,
    topics: Vec<(String, Result<Metadata, RDKafkaErrorCode>)>,
}

/// Blocks. The first question tells whether anything is reached at all; it names a topic because a request without one
/// lists everything in the cluster. Asked through a producer, which publishes nothing, because it hears of the brokers'
/// trouble: an `AdminClient` reads no events.
fn ask(
    client: &ThreadedProducer<Connection>,
    topics: &[String],
    within: Duration,
) -> Result<Answers, KafkaError> {
    let client = client.client();
    let probe = topics.iter().find(|topic| topic_is_legal(topic)).map_or("outboxd-check", String::as_str);
    let metadata = client.fetch_metadata(Some(probe), within)?;
    let brokers: Vec<String> = metadata
        .brokers()
        .iter()
        .map(|broker| format!("{} ({}:{})", broker.id(), broker.host(), broker.port()))
        .collect();
    let cluster = client.fetch_cluster_id(within);
    let named = cluster.as_deref().unwrap_or("unnamed");
    let found = format!("cluster {named} answers with {} brokers: {}", brokers.len(), brokers.join(", "));
    let topics = topics
        .iter()
        .map(|topic| {
            let answer = if topic_is_legal(topic) {
                client
                    .fetch_metadata(Some(topic), within)
                    .map_err(|error| error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown))
            } else {
                Err(RDKafkaErrorCode::InvalidTopic)
            };
            (topic.clone(), answer)
        })
        .collect();
    Ok(Answers { brokers: ok_finding("brokers", found), cluster, topics })
}

/// Whether it is the cluster that the outbox is published to.
fn finding_about_the_cluster(found: Option<&str>, known: Option<&str>) -> Finding {
    const CHECK: &str = "kafka cluster";
    match (found, known) {
        (Some(found), Some(known)) if found != known => error_finding(
            CHECK,
            format!(
                "the outbox is published to {known}, and this is {found}: a copied database, or another Kafka"
            ),
            "let kafka.bootstrap_servers lead to the former, or run `outboxd rebase --reason <why>` (docs/restore.md)",
        ),
        (Some(_), Some(known)) => ok_finding(CHECK, format!("{known}, which the outbox is published to")),
        (Some(found), None) => {
            ok_finding(CHECK, format!("{found}; the outbox has not been published to any yet"))
        }
        (None, _) => ok_finding(
            CHECK,
            "brokers give no name, so that a copied outbox is not recognised by it".to_owned(),
        ),
    }
}

fn unreachable(config: &KafkaConfig, connection: &Connection, error: &KafkaError) -> Finding {
    let why =
        connection.last_error().map_or_else(|| connection.unreachable(error).code, |last| last.to_string());
    error_finding(
        "brokers",
        format!("no broker of {} answers: {why}", config.bootstrap_servers),
        "check kafka.bootstrap_servers, the network, security.protocol and the credentials; `outboxd run` waits for them",
    )
}

/// The configuration of those topics that tell theirs.
async fn settings_of(
    config: &KafkaConfig,
    connection: Connection,
    topics: &[String],
) -> BTreeMap<String, ConfigResource> {
    let legal: Vec<&str> = topics.iter().map(String::as_str).filter(|topic| topic_is_legal(topic)).collect();
    if legal.is_empty() {
        return BTreeMap::new();
    }
    let described = describe(config, connection, &legal).await.unwrap_or_default();
    described
        .into_iter()
        .flatten()
        .filter(|resource| !resource.entries.is_empty())
        .filter_map(|resource| match &resource.specifier {
            OwnedResourceSpecifier::Topic(name) => Some((name.clone(), resource)),
            _ => None,
        })
        .collect()
}

/// Asks for the configuration of topics, whose names must be legal.
pub(crate) async fn describe(
    config: &KafkaConfig,
    connection: Connection,
    topics: &[&str],
) -> Result<Vec<ConfigResourceResult>, KafkaError> {
    let connecting = config.connecting();
    let made = spawn_blocking(move || connecting.create_with_context(connection)).await;
    let client: AdminClient<Connection> = made.unwrap_or(Err(KafkaError::Canceled))?;
    let topics: Vec<_> = topics.iter().map(|topic| ResourceSpecifier::Topic(topic)).collect();
    client.describe_configs(&topics, &AdminOptions::new().request_timeout(Some(config.look_up_within))).await
}

/// A topic, what is known of its configuration, and what it should take.
struct Asked<'a> {
    topic: &'a str,
    settings: Option<&'a ConfigResource>,
    config: &'a KafkaConfig,
    intent_max_bytes: Option<usize>,
}

impl Asked<'_> {
    fn setting(&self, name: &str) -> Option<String> {
        self.settings?.get(name)?.value.clone()
    }

    /// What is wrong if records larger than `limit` are refused.
    fn too_small(&self, check: &str, limit: usize, remedy: &str) -> Option<Finding> {
        let intents =
            self.intent_max_bytes.filter(|bytes| limit < bytes.saturating_add(RECORD_OVERHEAD_BYTES))?;
        let found = format!(
            "records up to {limit} bytes are published, and the outbox takes intents up to {intents} bytes: larger ones would be parked"
        );
        Some(warning_finding(check, found, remedy))
    }
}

fn findings_about_a_topic(asked: &Asked<'_>, answer: Result<&Metadata, &RDKafkaErrorCode>) -> Vec<Finding> {
    let (topic, config) = (asked.topic, asked.config);
    let check = format!("topic {topic}");
    let metadata = match answer {
        Ok(metadata) => metadata,
        Err(code) => {
            return vec![error_finding(
                &check,
                format!("{code:?}"),
                "check the topic's name and the brokers",
            )];
        }
    };
    let found = metadata.topics().iter().find(|found| found.name() == topic);
    let code = found.and_then(MetadataTopic::error).map(RDKafkaErrorCode::from);
    let (Some(found), None) = (found, code) else {
        return vec![missing_topic(&check, topic, code)];
    };
    let mut findings = vec![ok_finding(&check, described(found, asked))];
    let max_bytes = asked.setting("max.message.bytes").and_then(|value| value.parse::<usize>().ok());
    let Some(max_bytes) = max_bytes else {
        findings.push(warning_finding(
            &check,
            format!(
                "its max.message.bytes cannot be read; records up to kafka.message_max_bytes ({}) are tried",
                config.message_max_bytes
            ),
            "grant DESCRIBE_CONFIGS on the topic, or keep kafka.message_max_bytes equal to the smallest topic's limit",
        ));
        findings.extend(asked.too_small(
            &check,
            config.record_max_bytes(config.message_max_bytes),
            "raise kafka.message_max_bytes and the topic's max.message.bytes, or lower the outbox's limit (max_message_bytes) so that writers are told",
        ));
        return findings;
    };
    findings.extend(asked.too_small(
        &check,
        config.record_max_bytes(max_bytes),
        "raise the topic's max.message.bytes (and relay.in_flight_bytes above it), or lower the outbox's limit (max_message_bytes) so that writers are told",
    ));
    if asked.setting("cleanup.policy").is_some_and(|policy| policy.contains("compact")) {
        findings.push(warning_finding(
            &check,
            "is compacted: it refuses messages without a key, and keeps only the last one of each key"
                .to_owned(),
            "give every intent for it a key, or set cleanup.policy=delete",
        ));
    }
    findings
}

fn described(found: &MetadataTopic, asked: &Asked<'_>) -> String {
    let replicas =
        found.partitions().iter().map(|partition| partition.replicas().len()).min().unwrap_or_default();
    let leaderless = found.partitions().iter().filter(|partition| partition.leader() < 0).count();
    let limit =
        asked.setting("max.message.bytes").unwrap_or_else(|| asked.config.message_max_bytes.to_string());
    let mut text = format!("{} partitions, {replicas} replicas", found.partitions().len());
    if let Some(min) = asked.setting("min.insync.replicas") {
        text.push_str(&format!(" (at least {min} in sync)"));
    }
    text.push_str(&format!(", records up to {limit} bytes"));
    if leaderless > 0 {
        text.push_str(&format!(", {leaderless} partitions have no leader now"));
    }
    // No question that changes nothing tells.
    text.push_str(
        "; whether the principal may WRITE shows only when the relay writes (it needs WRITE and DESCRIBE)",
    );
    text
}

fn missing_topic(check: &str, topic: &str, code: Option<RDKafkaErrorCode>) -> Finding {
    match code {
        Some(RDKafkaErrorCode::TopicAuthorizationFailed) => error_finding(
            check,
            "not authorised: its messages would be held".to_owned(),
            &format!("grant WRITE and DESCRIBE on topic {topic} to the relay's principal"),
        ),
        Some(RDKafkaErrorCode::LeaderNotAvailable) => {
            warning_finding(check, "has no leader now".to_owned(), "wait, or look at the brokers")
        }
        _ => error_finding(
            check,
            "does not exist (or may not be described): its messages would be held".to_owned(),
            "create it; the relay never does",
        ),
    }
}

fn ok_finding(check: &str, found: String) -> Finding {
    Finding { check: check.to_owned(), severity: Severity::Ok, found, remedy: String::new() }
}

fn warning_finding(check: &str, found: String, remedy: &str) -> Finding {
    Finding { check: check.to_owned(), severity: Severity::Warning, found, remedy: remedy.to_owned() }
}

fn error_finding(check: &str, found: String, remedy: &str) -> Finding {
    Finding { check: check.to_owned(), severity: Severity::Error, found, remedy: remedy.to_owned() }
}
