//! What may be typed about the past of a message.
#![expect(clippy::doc_markdown, reason = "doc comments here are what a terminal shows")]

use clap::{ArgGroup, Args};
use outboxd_engine::trace::{By, Place, Recognised, TraceQuery, recognise, trace_id};
use outboxd_postgres::SchemaName;
use uuid::Uuid;

use super::Output;

pub(super) const EXAMPLES: &str = "\
Examples:
  outboxd trace 0198c5a4-7a0e-7c9e-b9f1-3d6a0a6f2b11
      a message id: its timeline, what caused it, and what it caused
  outboxd trace req-8f2e
      a correlation id: every message of the request, as a tree of what caused what
  outboxd trace orders/2@17
      a record in Kafka: whose message it is, and whether it is the copy that the receipt names
  outboxd trace 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01
      a traceparent from a log or a tracing tool
  outboxd trace --key account-7 --topic orders --limit 20
      the last messages of a key; keys are not for the reader's role
  outboxd trace --xid 8123
      what a transaction wrote; whether it is open, in which backend, and since when
  outboxd trace req-8f2e --watch
      asks again until everything is delivered, and prints what is new
  outboxd trace req-8f2e --inbox-url postgres://ops@localhost/shipping
      when each consumer claimed it, and how many copies its inbox absorbed
  outboxd trace req-8f2e --output json | jq -r '.messages[] | [.id, .state, .waits_for] | @tsv'

Without the optional indexes it walks the table, and says so: `outboxd migrate trace-indexes` builds them. docs/trace.md has the
questions that it answers.

Exit codes: 0 answered, also if nothing was found, 64 wrong usage, 69 the database, or Kafka for a record, cannot be reached, 70 a bug,
78 configuration or schema, or a right that is missing.";

/// `trace`.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("what").required(true).args(
    ["id", "message_id", "correlation_id", "trace_id", "idempotency_key", "key", "xid"])))]
pub(crate) struct Trace {
    /// Any id that you have; it is recognised
    #[arg(value_name = "ID", value_parser = some_text)]
    pub(crate) id: Option<String>,
    /// A message id: the header "id" of its record
    #[arg(long, value_name = "UUID")]
    pub(crate) message_id: Option<Uuid>,
    /// A correlation id
    #[arg(long, value_name = "TEXT", value_parser = some_text)]
    pub(crate) correlation_id: Option<String>,
    /// A trace id, or a whole traceparent
    #[arg(long, value_name = "HEX", value_parser = any_trace_id)]
    pub(crate) trace_id: Option<String>,
    /// An idempotency key
    #[arg(long, value_name = "TEXT", value_parser = some_text)]
    pub(crate) idempotency_key: Option<String>,
    /// A Kafka key: its last messages
    #[arg(long, value_name = "TEXT")]
    pub(crate) key: Option<String>,
    /// With --key: in this topic, as the intents name it
    #[arg(long, value_name = "TOPIC", requires = "key")]
    pub(crate) topic: Option<String>,
    /// A transaction of the database (PostgreSQL): pg_current_xact_id() of the one that wrote
    #[arg(long, value_name = "NUMBER")]
    pub(crate) xid: Option<u64>,
    /// At most so many messages
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub(crate) limit: u32,
    /// Ask again until everything is delivered, and print what is new
    #[arg(long)]
    pub(crate) watch: bool,
    /// Show key, headers and payload too; needs the right to read them
    #[arg(long)]
    pub(crate) payload: bool,
    /// The database of a consumer with an inbox, as --database-url; may be repeated
    #[arg(long, value_name = "URL")]
    pub(crate) inbox_url: Vec<String>,
    /// The schema with the inbox (PostgreSQL)
    #[arg(long, value_name = "SCHEMA", default_value = "inbox", value_parser = inbox_schema)]
    pub(crate) inbox_schema: SchemaName,
    /// How to print it.
    #[command(flatten)]
    pub(crate) output: Output,
}

impl Trace {
    /// Whether a record has to be read first.
    pub(crate) fn needs_kafka(&self) -> bool {
        matches!(self.asked(), Asked::Record(_))
    }

    /// What is asked for.
    pub(crate) fn asked(&self) -> Asked {
        let by = if let Some(text) = &self.id {
            return Asked::of(text, self.limit);
        } else if let Some(id) = self.message_id {
            (id.to_string(), By::Ids(vec![id]))
        } else if let Some(id) = &self.correlation_id {
            (id.clone(), By::Correlation(id.clone()))
        } else if let Some(id) = &self.trace_id {
            (id.clone(), By::TraceId(id.clone()))
        } else if let Some(key) = &self.idempotency_key {
            (key.clone(), By::Idempotency(key.clone()))
        } else if let Some(xid) = self.xid {
            (xid.to_string(), By::Xid(xid))
        } else {
            let key = self.key.clone().unwrap_or_default();
            (key.clone(), By::Key { key, topic: self.topic.clone() })
        };
        let (value, by) = by;
        let asked = format!("{} {value}", by.what());
        Asked::Query(TraceQuery { asked, by: vec![by], limit: self.limit, place: None })
    }
}

/// What is asked for, recognised.
#[derive(Clone, Debug)]
pub(crate) enum Asked {
    /// Intents.
    Query(TraceQuery),
    /// The message that a record names.
    Record(Place),
}

impl Asked {
    /// What any id means.
    pub(crate) fn of(text: &str, limit: u32) -> Self {
        match recognise(text) {
            Recognised::Place(place) => Self::Record(place),
            Recognised::By(by) => {
                Self::Query(TraceQuery { asked: text.trim().to_owned(), by, limit, place: None })
            }
        }
    }
}

fn some_text(text: &str) -> Result<String, String> {
    let text = text.trim();
    if text.is_empty() { Err("must not be blank".to_owned()) } else { Ok(text.to_owned()) }
}

fn any_trace_id(text: &str) -> Result<String, String> {
    trace_id(text.trim()).map(str::to_ascii_lowercase).ok_or_else(|| {
        "is neither 32 hexadecimal digits nor a traceparent (00-<trace id>-<span id>-<flags>)".to_owned()
    })
}

fn inbox_schema(name: &str) -> Result<SchemaName, String> {
    name.parse().map_err(|error: outboxd_postgres::schema::SchemaNameError| error.to_string())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    fn parsed(arguments: &[&str]) -> Option<Trace> {
        match Cli::try_parse_from([&["outboxd", "trace"], arguments].concat()).ok()?.command {
            Command::Trace(trace) => Some(trace),
            _ => None,
        }
    }

    #[test]
    fn one_id_is_asked_for_and_only_a_record_needs_kafka() {
        assert!(parsed(&["orders/2@17"]).unwrap().needs_kafka());
        assert!(!parsed(&["req-8f2e"]).unwrap().needs_kafka());
        for wrong in [
            &[][..],
            &[""],
            &["x", "--xid", "1"],
            &["--topic", "t"],
            &["--trace-id", "xyz"],
            &["x", "--limit", "0"],
        ] {
            assert!(parsed(wrong).is_none(), "{wrong:?}");
        }
        let key = parsed(&["--key", "k", "--topic", "t"]).unwrap().asked();
        let Asked::Query(query) = key else { panic!() };
        assert_eq!(query.by, [By::Key { key: "k".into(), topic: Some("t".into()) }]);
        assert_eq!(query.asked, "key k");
    }
}
