//! `check`: the preflight.

use std::collections::BTreeSet;
use std::io::IsTerminal as _;

use anyhow::anyhow;
use outboxd_core::Routes;
use outboxd_engine::{Finding, Operate, OutboxError, Severity};
use outboxd_kafka::KafkaConfig;
use outboxd_postgres::PostgresOperator;
use outboxd_sqlite::SqliteOperator;

use crate::adapters::Adapter;
use crate::cli::Check;
use crate::failure::Failure;
use crate::output;

/// How the Kafka adapter calls the finding that no broker answers.
const BROKERS: &str = "brokers";

/// Looks at database and Kafka and says what it found, each finding with its remedy.
pub(crate) async fn check(
    adapter: Adapter,
    kafka: &KafkaConfig,
    routes: &Routes,
    asked: &Check,
) -> Result<(), Failure> {
    let database = match adapter {
        Adapter::Postgres(config) => look_at(PostgresOperator::new(*config)).await,
        Adapter::Sqlite(config) => look_at(SqliteOperator::new(config)).await,
    };
    let mut topics: BTreeSet<String> = asked.topic.iter().cloned().collect();
    let mut out_of_reach = Vec::new();
    let mut intent_max_bytes = None;
    let mut findings = match database {
        Ok(outbox) => {
            intent_max_bytes = outbox.max_message_bytes;
            let (destinations, refused) = destinations(routes, &outbox.topics);
            topics.extend(destinations);
            outbox.findings.into_iter().chain(refused).collect()
        }
        Err(error) => {
            if matches!(error, OutboxError::Unavailable { .. }) {
                out_of_reach.push("the database");
            }
            vec![refusal(error)]
        }
    };
    let topics: Vec<String> = topics.into_iter().collect();
    let of_kafka = outboxd_kafka::inspect(kafka, &topics, intent_max_bytes).await;
    if of_kafka.iter().any(|finding| finding.check == BROKERS && finding.severity == Severity::Error) {
        out_of_reach.push("Kafka");
    }
    findings.extend(of_kafka);
    output::answer(asked.output.output, &findings, |findings| table(findings))?;
    let errors = findings.iter().filter(|finding| finding.severity == Severity::Error).count();
    match (errors, out_of_reach.is_empty()) {
        (0, _) => Ok(()),
        (_, false) => Err(Failure::unavailable(anyhow!("cannot reach {}", out_of_reach.join(" and ")))),
        (_, true) => Err(Failure::config(anyhow!("findings that keep the relay from its work: {errors}"))),
    }
}

/// What the adapter found, and what Kafka is asked about because of it: nothing if the outbox cannot be read.
#[derive(Default)]
struct Outbox {
    findings: Vec<Finding>,
    topics: Vec<String>,
    max_message_bytes: Option<usize>,
}

async fn look_at(operator: impl Operate) -> Result<Outbox, OutboxError> {
    let findings = operator.check().await?;
    if findings.iter().any(|finding| finding.severity == Severity::Error) {
        return Ok(Outbox { findings, ..Outbox::default() });
    }
    let topics = operator.topics().await?;
    Ok(Outbox { findings, topics, max_message_bytes: Some(operator.max_message_bytes().await?) })
}

/// The topics at Kafka that intents and policies lead to, and what is to be said of intents that go nowhere.
fn destinations(routes: &Routes, intents_topics: &[String]) -> (Vec<String>, Option<Finding>) {
    let (mut topics, mut refused) = (Vec::new(), Vec::new());
    for topic in intents_topics {
        let destination = routes.destination(topic);
        match destination.refusal {
            None => topics.push(destination.topic.to_string()),
            Some(_) => refused.push(topic.as_str()),
        }
    }
    topics.extend(routes.iter().filter_map(|route| route.dead_letter.clone()));
    let finding = (!refused.is_empty()).then(|| Finding {
        check: "topics allowed".to_owned(),
        severity: Severity::Warning,
        found: format!("intents name topics that are illegal or not allowed: {}", refused.join(", ")),
        remedy: "they are parked: correct the application, or add the topics to relay.topics_allowed"
            .to_owned(),
    });
    (topics, finding)
}

/// An error as a finding, so that what Kafka says is shown as well.
fn refusal(error: OutboxError) -> Finding {
    let (found, remedy) = match error {
        OutboxError::Refused { finding, remedy } => (finding, remedy),
        OutboxError::Unavailable { .. } | OutboxError::Fenced => (
            outboxd_engine::chain(&error),
            "start the database, or correct database.url (`outboxd config show`)".to_owned(),
        ),
    };
    Finding { check: "database".to_owned(), severity: Severity::Error, found, remedy }
}

fn table(findings: &[Finding]) -> String {
    let marks =
        if std::io::stdout().is_terminal() { ["✔", "!", "✖"] } else { ["ok", "warning", "error"] };
    let row = |finding: &Finding| {
        let mark = match finding.severity {
            Severity::Ok => marks[0],
            Severity::Warning => marks[1],
            Severity::Error => marks[2],
        };
        [mark.to_owned(), finding.check.clone(), finding.found.clone(), finding.remedy.clone()]
    };
    output::table(["", "CHECK", "FOUND", "REMEDY"], findings.iter().map(row))
}
