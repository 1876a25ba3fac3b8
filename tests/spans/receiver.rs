//! The OpenTelemetry Collector's OTLP receiver, built from `tests/otlp` and run beside a test, and the spans that it received.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use outboxd_testkit::ports::free_port;
use outboxd_testkit::process::{Group, Process};
use outboxd_testkit::relay::eventually;
use serde_json::Value;
use tempfile::TempDir;

use crate::recipes::runtime::go_programs;
use crate::support::SOON;

const FILES: [&str; 3] = ["go.mod", "go.sum", "main.go"];

/// A running receiver; it ends with the value.
#[derive(Debug)]
pub(crate) struct Receiver {
    _process: Process,
    endpoint: String,
    received: PathBuf,
    _directory: TempDir,
}

impl Receiver {
    /// Starts one; none if this machine has no Go to build it with.
    pub(crate) async fn start() -> Option<Self> {
        Self::start_with(None).await
    }

    /// The same with TLS: certificate and key, in PEM.
    pub(crate) async fn start_with(tls: Option<(&str, &str)>) -> Option<Self> {
        let module = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/otlp");
        let built = tokio::task::spawn_blocking(move || go_programs("otlp", &module, &FILES)).await.unwrap();
        let Some(programs) = built.unwrap() else {
            eprintln!(
                "the export of spans was not tested: go, which builds the OTLP receiver, is not on this machine"
            );
            return None;
        };
        let directory = TempDir::new().unwrap();
        let received = directory.path().join("received");
        let address = format!("127.0.0.1:{}", free_port().unwrap());
        let mut command = Command::new(programs.join("otlp"));
        command.arg(&address).arg(&received);
        if let Some((certificate, key)) = tls {
            for (name, text) in [("certificate.pem", certificate), ("key.pem", key)] {
                let file = directory.path().join(name);
                std::fs::write(&file, text).unwrap();
                command.arg(file);
            }
        }
        let log = directory.path().join("log");
        let mut process = Process::start("the OTLP receiver", command, &log, Group::Starter).unwrap();
        let listens = || std::net::TcpStream::connect(&address).is_ok();
        process.wait_until("listening", SOON, listens).await.unwrap();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let endpoint = format!("{scheme}://{address}");
        Some(Self { _process: process, endpoint, received, _directory: directory })
    }

    /// What `OTEL_EXPORTER_OTLP_ENDPOINT` is to be.
    pub(crate) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Everything that it has received, as text.
    pub(crate) fn text(&self) -> String {
        std::fs::read_to_string(&self.received).unwrap_or_default()
    }

    /// Every span that it has received.
    pub(crate) fn spans(&self) -> Vec<ReceivedSpan> {
        let lines: Vec<Value> = self
            .text()
            .lines()
            .map(|line| serde_json::from_str(line).expect("a line is OTLP's JSON"))
            .collect();
        let resources = lines.iter().flat_map(|line| list(&line["resourceSpans"]));
        resources
            .flat_map(|resource| {
                let scopes = list(&resource["scopeSpans"]).iter().flat_map(|scope| list(&scope["spans"]));
                scopes.map(|span| ReceivedSpan { span: span.clone(), resource: resource["resource"].clone() })
            })
            .collect()
    }

    /// Waits until so many spans of a message are there.
    pub(crate) async fn spans_of(&self, message: uuid::Uuid, spans: usize) -> Vec<ReceivedSpan> {
        let id = message.to_string();
        eventually(&format!("{spans} spans of message {id} arrive"), Duration::from_secs(30), async || {
            let mut of_message = self.spans();
            of_message.retain(|span| span.attribute("messaging.message.id").as_str() == Some(&id));
            (of_message.len() >= spans).then_some(of_message)
        })
        .await
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// A span as it arrived, and what it came from.
#[derive(Clone, Debug)]
pub(crate) struct ReceivedSpan {
    span: Value,
    resource: Value,
}

impl ReceivedSpan {
    fn text(&self, field: &str) -> &str {
        self.span[field].as_str().unwrap_or_default()
    }

    pub(crate) fn name(&self) -> &str {
        self.text("name")
    }

    pub(crate) fn trace(&self) -> &str {
        self.text("traceId")
    }

    pub(crate) fn id(&self) -> &str {
        self.text("spanId")
    }

    pub(crate) fn parent(&self) -> &str {
        self.text("parentSpanId")
    }

    /// Internal 1, server 2, client 3, producer 4, consumer 5.
    pub(crate) fn kind(&self) -> u64 {
        self.span["kind"].as_u64().unwrap_or_default()
    }

    /// Nanoseconds since 1970.
    pub(crate) fn began(&self) -> u64 {
        self.text("startTimeUnixNano").parse().unwrap()
    }

    /// Nanoseconds since 1970.
    pub(crate) fn ended(&self) -> u64 {
        self.text("endTimeUnixNano").parse().unwrap()
    }

    /// Trace and span ids of its links.
    pub(crate) fn links(&self) -> Vec<(String, String)> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        list(&self.span["links"]).iter().map(|link| (text(&link["traceId"]), text(&link["spanId"]))).collect()
    }

    /// Unset 0, ok 1, error 2; and what is said of it.
    pub(crate) fn status(&self) -> (u64, &str) {
        let status = &self.span["status"];
        (status["code"].as_u64().unwrap_or_default(), status["message"].as_str().unwrap_or_default())
    }

    pub(crate) fn attribute(&self, name: &str) -> Value {
        attribute(&self.span, name)
    }

    pub(crate) fn resource(&self, name: &str) -> Value {
        attribute(&self.resource, name)
    }
}

/// The value of an attribute, without OTLP's wrapping.
fn attribute(of: &Value, name: &str) -> Value {
    let found = list(&of["attributes"]).iter().find(|attribute| attribute["key"] == name);
    let Some(value) = found.and_then(|attribute| attribute["value"].as_object()?.iter().next()) else {
        return Value::Null;
    };
    match value {
        // OTLP's JSON writes whole numbers as text.
        (kind, Value::String(number)) if kind == "intValue" => number.parse::<i64>().unwrap().into(),
        (_, value) => value.clone(),
    }
}
