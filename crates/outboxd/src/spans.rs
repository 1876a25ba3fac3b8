//! Spans of the messages' way to Kafka, for whoever traces: the outbox wait, and one producer span for each attempt.
//!
//! This is the only part of the program that knows OpenTelemetry. A span belongs to the trace whose context the intent was written
//! with, so one trace shows the application, the wait in the outbox and the publishing. What is stored in the intent stays as it is:
//! the record's `traceparent` header names the application's span, in every copy.

mod export;

use std::time::{Duration, SystemTime};

use opentelemetry::propagation::{Extractor, TextMapPropagator as _};
use opentelemetry::trace::{
    Link, Span as _, SpanBuilder, SpanKind, Status, TraceContextExt as _, Tracer as _,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracer, Span};
use outboxd_core::{HoldReason, Message};
use outboxd_engine::{Answer, Attempt, Follow};

use export::Exporter;
pub(crate) use export::SpanCounts;

use crate::config::Exporting;

/// How long the end of the process waits for a collector, at most.
const FLUSH_AT_MOST: Duration = Duration::from_secs(5);

/// Makes spans and exports them.
#[derive(Debug)]
pub(crate) struct Spans {
    tracer: SdkTracer,
    exporter: Exporter,
    propagator: TraceContextPropagator,
    instance: String,
}

impl Spans {
    /// Starts the exporter, with a thread of its own.
    ///
    /// # Errors
    /// If the variables make no exporter.
    pub(crate) fn start(exporting: &Exporting, instance: &str, counts: SpanCounts) -> anyhow::Result<Self> {
        let exporter = Exporter::start(exporting, instance, counts)?;
        Ok(Self {
            tracer: exporter.tracer(),
            exporter,
            propagator: TraceContextPropagator::new(),
            instance: instance.to_owned(),
        })
    }

    /// A record is handed over. What follows it, if its trace is sampled.
    pub(crate) fn attempt(&self, attempt: &Attempt<'_>) -> Option<Box<dyn Follow>> {
        let message = attempt.message;
        let now = opentelemetry::time::now();
        let writer = self.propagator.extract_with_context(&Context::new(), &TraceHeaders(message));
        let writers_span = writer.span().span_context().clone();
        let is_first = attempt.attempts == 0 && !attempt.is_dead_letter;
        let wait = is_first.then(|| self.wait(attempt, &writer, now));
        let (parent, links) = match wait {
            _ if writers_span.is_valid() => (writer, vec![Link::with_context(writers_span)]),
            // Nobody traced the writer: the wait is the root.
            Some(wait) => (Context::new().with_remote_span_context(wait.span_context().clone()), Vec::new()),
            None => (writer, Vec::new()),
        };
        let builder = SpanBuilder::from_name(format!("send {}", attempt.topic))
            .with_kind(SpanKind::Producer)
            .with_start_time(now)
            .with_links(links);
        let mut span = self.tracer.build_with_context(builder, &parent);
        if !span.is_recording() {
            return None;
        }
        span.set_attributes([
            KeyValue::new("messaging.system", "kafka"),
            KeyValue::new("messaging.operation.name", "send"),
            KeyValue::new("messaging.operation.type", "send"),
            KeyValue::new("messaging.destination.name", attempt.topic.to_owned()),
            KeyValue::new("messaging.client.id", self.instance.clone()),
            KeyValue::new("messaging.message.id", message.id.to_string()),
            KeyValue::new("messaging.message.conversation_id", message.correlation_id.clone()),
            KeyValue::new("outboxd.seq", message.seq.0),
            KeyValue::new("outboxd.attempt", i64::from(attempt.attempts) + 1),
        ]);
        match &message.payload {
            Some(payload) => {
                let size = i64::try_from(payload.len()).unwrap_or(i64::MAX);
                span.set_attribute(KeyValue::new("messaging.message.body.size", size));
            }
            None => span.set_attribute(KeyValue::new("messaging.kafka.message.tombstone", true)),
        }
        if let Some(causation_id) = &message.causation_id {
            span.set_attribute(KeyValue::new("outboxd.causation_id", causation_id.clone()));
        }
        if attempt.is_dead_letter {
            span.set_attribute(KeyValue::new("outboxd.dead_letter", true));
        }
        Some(Box::new(Sent { span }))
    }

    /// The time in the outbox, from when the message could have been delivered to its hand-over.
    fn wait(&self, attempt: &Attempt<'_>, writer: &Context, now: SystemTime) -> Span {
        let message = attempt.message;
        let since = now.checked_sub(attempt.waited_since.elapsed()).unwrap_or(now);
        let builder =
            SpanBuilder::from_name("outbox wait").with_kind(SpanKind::Internal).with_start_time(since);
        let mut span = self.tracer.build_with_context(builder, writer);
        if span.is_recording() {
            span.set_attributes([
                KeyValue::new("messaging.destination.name", attempt.topic.to_owned()),
                KeyValue::new("messaging.message.id", message.id.to_string()),
                KeyValue::new("messaging.message.conversation_id", message.correlation_id.clone()),
                KeyValue::new("outboxd.seq", message.seq.0),
            ]);
        }
        span.end_with_timestamp(now);
        span
    }

    /// Exports what waits, for `left` of the grace period at most, and ends.
    pub(crate) async fn finish(&self, left: Duration) {
        self.exporter.finish(left.min(FLUSH_AT_MOST)).await;
    }

    /// Ends at once; what waits is lost.
    pub(crate) fn abandon(&self) {
        self.exporter.abandon();
    }
}

/// The trace headers that an intent was written with.
struct TraceHeaders<'a>(&'a Message);

impl Extractor for TraceHeaders<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        match name {
            "traceparent" => self.0.traceparent.as_deref(),
            "tracestate" => self.0.tracestate.as_deref(),
            _ => None,
        }
    }

    fn keys(&self) -> Vec<&str> {
        vec!["traceparent", "tracestate"]
    }
}

/// The span of an attempt under way.
#[derive(Debug)]
struct Sent {
    span: Span,
}

impl Sent {
    fn failed(&mut self, error_type: String, said: String) {
        self.span.set_attribute(KeyValue::new("error.type", error_type));
        self.span.set_status(Status::error(said));
    }
}

impl Follow for Sent {
    fn ended(mut self: Box<Self>, answer: Answer<'_>) {
        match answer {
            Answer::Acknowledged(receipt) => self.span.set_attributes([
                KeyValue::new("messaging.destination.partition.id", receipt.partition.to_string()),
                KeyValue::new("messaging.kafka.offset", receipt.offset),
            ]),
            Answer::Failed(error, outcome) => {
                self.span.set_attribute(KeyValue::new("outboxd.outcome", outcome.as_str()));
                self.failed(error.code.clone(), error.to_string());
            }
            Answer::Refused(refusal) => {
                self.span.set_attribute(KeyValue::new("outboxd.outcome", "parked"));
                self.failed(HoldReason::from(refusal).as_str().to_owned(), refusal.to_string());
            }
        }
        self.span.end();
    }
}

impl Drop for Sent {
    fn drop(&mut self) {
        if self.span.is_recording() {
            let said =
                "no answer came before the relay went back to the settled cursor; Kafka may have the record";
            self.failed("outcome_unknown".to_owned(), said.to_owned());
        }
    }
}
