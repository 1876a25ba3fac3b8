//! What `outboxd check` says about Kafka: findings with their remedies. Publishes nothing and creates nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use outboxd_core::record::topic_is_legal;
use outboxd_engine::{Finding, Severity};
use rdkafka::admin::{AdminClient, AdminOptions, ConfigResource, OwnedResourceSpecifier, ResourceSpecifier};
use rdkafka::error::KafkaError;
use rdkafka::metadata::{Metadata, MetadataTopic};
use rdkafka::types::RDKafkaErrorCode;
use tokio::task::spawn_blocking;

use crate::config::KafkaConfig;
use crate::connection::Connection;
use crate::properties::{creation_reason, validate};

/// Below this, a cluster that takes no larger records is worth a word: intents may be 1,000,000 bytes by default.
const USUAL_RECORD_BYTES: usize = 1_000_000;

/// Looks at the configuration, the brokers and these topics. Takes at most about `look_up_within` twice.
pub async fn inspect(config: &KafkaConfig, topics: &[String]) -> Vec<Finding> {
    let mut findings = findings_about_the_configuration(config).await;
    if findings.iter().any(|finding| finding.severity == Severity::Error) {
        return findings;
    }
    let connection = Connection::default();
    let client = {
        let (config, connection) = (config.clone(), connection.clone());
        spawn_blocking(move || config.connecting().create_with_context(connection)).await
    };
    let client: Arc<AdminClient<Connection>> = match client {
        Ok(Ok(client)) => Arc::new(client),
        Ok(Err(error)) => {
            findings.push(error_finding("kafka client", creation_reason(&error), "correct [kafka]"));
            return findings;
        }
        Err(error) => {
            findings.push(error_finding("kafka client", error.to_string(), "report this as a bug"));
            return findings;
        }
    };
    let within = config.look_up_within;
    let names: Vec<String> = topics.to_vec();
    let asked = {
        let client = Arc::clone(&client);
        spawn_blocking(move || ask(&client, &names, within)).await
    };
    let answers = match asked {
        Ok(Ok(answers)) => answers,
        Ok(Err(error)) => {
            findings.push(unreachable(&connection, &error));
            return findings;
        }
        Err(error) => {
            findings.push(error_finding("brokers", error.to_string(), "report this as a bug"));
            return findings;
        }
    };
    findings.push(answers.brokers);
    let settings = settings_of(&client, topics, within).await;
    for (topic, metadata) in answers.topics {
        findings.extend(findings_about_a_topic(&topic, metadata.as_ref(), settings.get(&topic), config));
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

struct Answers {
    brokers: Finding,
    topics: Vec<(String, Result<Metadata, RDKafkaErrorCode>)>,
}

/// Blocks. The first question tells whether anything is reached at all; it names a topic because a request without one
/// lists everything in the cluster.
fn ask(client: &AdminClient<Connection>, topics: &[String], within: Duration) -> Result<Answers, KafkaError> {
    let probe = topics.iter().find(|topic| topic_is_legal(topic)).map_or("outboxd-check", String::as_str);
    let metadata = client.inner().fetch_metadata(Some(probe), within)?;
    let brokers: Vec<String> = metadata
        .brokers()
        .iter()
        .map(|broker| format!("{} ({}:{})", broker.id(), broker.host(), broker.port()))
        .collect();
    let cluster = client.inner().fetch_cluster_id(within).unwrap_or_else(|| "unnamed".to_owned());
    let found = format!("cluster {cluster} answers with {} brokers: {}", brokers.len(), brokers.join(", "));
    let topics = topics
        .iter()
        .map(|topic| {
            let answer = if topic_is_legal(topic) {
                client
                    .inner()
                    .fetch_metadata(Some(topic), within)
                    .map_err(|error| error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown))
            } else {
                Err(RDKafkaErrorCode::InvalidTopic)
            };
            (topic.clone(), answer)
        })
        .collect();
    Ok(Answers { brokers: ok_finding("brokers", found), topics })
}

fn unreachable(connection: &Connection, error: &KafkaError) -> Finding {
    let found = connection.last_error().map_or_else(
        || connection.unreachable(error).code,
        |last| format!("no broker answers; last: {last}"),
    );
    error_finding(
        "brokers",
        found,
        "check kafka.bootstrap_servers, the network, security.protocol and the credentials; `outboxd run` waits for them",
    )
}

async fn settings_of(
    client: &AdminClient<Connection>,
    topics: &[String],
    within: Duration,
) -> BTreeMap<String, ConfigResource> {
    let legal: Vec<_> = topics
        .iter()
        .filter(|topic| topic_is_legal(topic))
        .map(|topic| ResourceSpecifier::Topic(topic))
        .collect();
    if legal.is_empty() {
        return BTreeMap::new();
    }
    let options = AdminOptions::new().request_timeout(Some(within));
    let described = client.describe_configs(&legal, &options).await.unwrap_or_default();
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

fn findings_about_a_topic(
    topic: &str,
    answer: Result<&Metadata, &RDKafkaErrorCode>,
    settings: Option<&ConfigResource>,
    config: &KafkaConfig,
) -> Vec<Finding> {
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
    let mut findings = vec![ok_finding(&check, described(found, settings, config))];
    let setting = |name: &str| settings.and_then(|settings| settings.get(name)?.value.clone());
    let Some(max_bytes) = setting("max.message.bytes").and_then(|value| value.parse::<usize>().ok()) else {
        findings.push(warning_finding(
            &check,
            format!(
                "its max.message.bytes cannot be read; records up to kafka.message_max_bytes ({}) are tried",
                config.message_max_bytes
            ),
            "grant DESCRIBE_CONFIGS on the topic, or keep kafka.message_max_bytes equal to the smallest topic's limit",
        ));
        return findings;
    };
    if config.record_max_bytes(max_bytes) < USUAL_RECORD_BYTES {
        findings.push(warning_finding(
            &check,
            format!("takes records up to {} bytes only", config.record_max_bytes(max_bytes)),
            "raise the topic's max.message.bytes, or lower the outbox's size limit so that writers are told",
        ));
    }
    if setting("cleanup.policy").is_some_and(|policy| policy.contains("compact")) {
        findings.push(warning_finding(
            &check,
            "is compacted: it refuses messages without a key, and keeps only the last one of each key"
                .to_owned(),
            "give every intent for it a key, or set cleanup.policy=delete",
        ));
    }
    findings
}

fn described(found: &MetadataTopic, settings: Option<&ConfigResource>, config: &KafkaConfig) -> String {
    let replicas =
        found.partitions().iter().map(|partition| partition.replicas().len()).min().unwrap_or_default();
    let leaderless = found.partitions().iter().filter(|partition| partition.leader() < 0).count();
    let setting = |name: &str| settings.and_then(|settings| settings.get(name)?.value.clone());
    let limit = setting("max.message.bytes").unwrap_or_else(|| config.message_max_bytes.to_string());
    let mut text = format!("{} partitions, {replicas} replicas", found.partitions().len());
    if let Some(min) = setting("min.insync.replicas") {
        text.push_str(&format!(" (at least {min} in sync)"));
    }
    text.push_str(&format!(", records up to {limit} bytes"));
    if leaderless > 0 {
        text.push_str(&format!(", {leaderless} partitions have no leader now"));
    }
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
