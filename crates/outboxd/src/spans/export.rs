//! The way out for spans: a bounded queue, a thread of its own, and counts of what was exported and what was not.
//!
//! The SDK's batch processor does the work. Here it gets a gate, because it does not say what it dropped, and an exporter around
//! the OTLP one that counts and tells of trouble, rarely. Nothing waits for a collector, but the end of the process for a moment.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::resource::{
    EnvResourceDetector, SdkProvidedResourceDetector, TelemetryResourceDetector,
};
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, SdkTracer, SdkTracerProvider, Span, SpanData, SpanExporter,
    SpanProcessor,
};
use tokio::time::Instant;

use crate::config::Exporting;

/// Between two lines about a collector that does not take spans.
const TOLD_EVERY: Duration = Duration::from_secs(60);

/// What became of spans. Clones count together.
#[derive(Clone, Debug, Default)]
pub(crate) struct SpanCounts(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    exported: AtomicU64,
    queue_full: AtomicU64,
    export_failed: AtomicU64,
    waiting: AtomicUsize,
}

impl SpanCounts {
    /// Spans that the collector has taken.
    pub(crate) fn exported(&self) -> u64 {
        self.0.exported.load(Ordering::Relaxed)
    }

    /// Spans dropped because too many waited.
    pub(crate) fn queue_full(&self) -> u64 {
        self.0.queue_full.load(Ordering::Relaxed)
    }

    /// Spans dropped because the collector did not take them.
    pub(crate) fn export_failed(&self) -> u64 {
        self.0.export_failed.load(Ordering::Relaxed)
    }

    fn waiting(&self) -> usize {
        self.0.waiting.load(Ordering::Relaxed)
    }

    /// Lets a span in, if there is room.
    fn enter(&self, room: usize) -> bool {
        let waiting = &self.0.waiting;
        let entered = waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |waiting| {
            (waiting < room).then_some(waiting + 1)
        });
        if entered.is_err() {
            self.0.queue_full.fetch_add(1, Ordering::Relaxed);
        }
        entered.is_ok()
    }

    fn left(&self, spans: usize) {
        self.0.waiting.fetch_sub(spans, Ordering::Relaxed);
    }
}

/// The exporter's thread and the way to it.
#[derive(Debug)]
pub(super) struct Exporter {
    provider: SdkTracerProvider,
    counts: SpanCounts,
}

impl Exporter {
    pub(super) fn start(exporting: &Exporting, instance: &str, counts: SpanCounts) -> anyhow::Result<Self> {
        let otlp = opentelemetry_otlp::SpanExporter::builder()
            .with_http()
            .build()
            .context("make an OTLP exporter from the OTEL_ variables")?;
        let counting = Counting { otlp, counts: counts.clone(), trouble: Mutex::default() };
        let batch = BatchConfigBuilder::default().with_max_queue_size(exporting.queue_spans).build();
        let gate = Gate {
            next: BatchSpanProcessor::builder(counting).with_batch_config(batch).build(),
            room: exporting.queue_spans,
            counts: counts.clone(),
        };
        let resource = resource(exporting, instance);
        let provider = SdkTracerProvider::builder().with_span_processor(gate).with_resource(resource).build();
        Ok(Self { provider, counts })
    }

    pub(super) fn tracer(&self) -> SdkTracer {
        self.provider.tracer("outboxd")
    }

    pub(super) async fn finish(&self, within: Duration) {
        let provider = self.provider.clone();
        // On a thread that may block: the batch processor answers from its own.
        let _ended = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(within)).await;
        let waiting = self.counts.waiting();
        if waiting > 0 {
            tracing::warn!(target: "outboxd::spans", spans = waiting, "spans are lost: the collector did not take them in time");
        }
    }

    pub(super) fn abandon(&self) {
        // The answer does not come in no time, and the processor is told all the same.
        let _timed_out = self.provider.shutdown_with_timeout(Duration::ZERO);
    }
}

/// What the spans come from. The variables win over what the relay says of itself.
fn resource(exporting: &Exporting, instance: &str) -> Resource {
    let itself = [
        KeyValue::new("service.name", "outboxd"),
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        KeyValue::new("service.instance.id", instance.to_owned()),
    ];
    let mut resource = Resource::builder_empty()
        .with_detector(Box::new(TelemetryResourceDetector))
        .with_attributes(itself)
        .with_detector(Box::new(EnvResourceDetector::new()));
    if exporting.is_named {
        resource = resource.with_detector(Box::new(SdkProvidedResourceDetector));
    }
    resource.build()
}

/// Lets as many spans wait as there is room for. So the batch processor behind it never drops one.
#[derive(Debug)]
struct Gate {
    next: BatchSpanProcessor,
    room: usize,
    counts: SpanCounts,
}

impl SpanProcessor for Gate {
    fn on_start(&self, _span: &mut Span, _context: &Context) {}

    fn on_end(&self, span: SpanData) {
        if self.counts.enter(self.room) {
            self.next.on_end(span);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.next.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.next.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.next.set_resource(resource);
    }
}

/// Counts what the exporter behind it exports, and tells when it cannot.
#[derive(Debug)]
struct Counting {
    otlp: opentelemetry_otlp::SpanExporter,
    counts: SpanCounts,
    trouble: Mutex<Option<Trouble>>,
}

/// The collector does not take spans.
#[derive(Clone, Copy, Debug)]
struct Trouble {
    told_at: Instant,
    spans: u64,
}

impl SpanExporter for Counting {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        let exported = self.otlp.export(batch).await;
        self.counts.left(spans);
        let spans = spans as u64;
        match &exported {
            Ok(()) => {
                self.counts.0.exported.fetch_add(spans, Ordering::Relaxed);
                self.went_well();
            }
            Err(error) => {
                self.counts.0.export_failed.fetch_add(spans, Ordering::Relaxed);
                self.went_wrong(&error.to_string(), spans);
            }
        }
        exported
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.otlp.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.otlp.set_resource(resource);
    }
}

impl Counting {
    fn went_wrong(&self, error: &str, spans: u64) {
        let now = Instant::now();
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *trouble {
            Some(known) if now.saturating_duration_since(known.told_at) < TOLD_EVERY => known.spans += spans,
            other => {
                let spans = spans + other.map_or(0, |known| known.spans);
                tracing::warn!(target: "outboxd::spans", error, spans,
                    "spans cannot be exported and are dropped; messages are not affected");
                *other = Some(Trouble { told_at: now, spans: 0 });
            }
        }
    }

    fn went_well(&self) {
        if self.trouble.lock().unwrap_or_else(PoisonError::into_inner).take().is_some() {
            tracing::info!(target: "outboxd::spans", "spans are exported again");
        }
    }
}
