//! Every metric, and the only place that touches one.
//!
//! [`METRICS`] declares them; `docs/metrics.md` holds the same table and a test compares the two. All are registered at
//! start, so each is at zero before anything happens, and the loop touches handles only. Labels are bounded by construction:
//! the words of an enum, or a topic up to [`TOPICS_MAX`].

mod declared;

mod delivery;

mod proof;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, Key, Label, Level, Metadata, Recorder as _};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use outboxd_core::HoldReason;
use outboxd_engine::{Backlog, Event, Observe, Outcome, PublisherStats, ReplayState, Side};
use tokio::time::Instant;

use crate::spans::SpanCounts;
use crate::telemetry::DroppedLines;
use crate::verify::Report;
pub(crate) use declared::METRICS;
#[cfg(test)]
pub(crate) use declared::markdown_table;
use declared::{Kind, Metric};
use delivery::Delivery;
use proof::Proof;

/// Topics that get a label of their own; all others share `other`.
const TOPICS_MAX: usize = 100;
const OTHER_TOPICS: &str = "other";
const METADATA: Metadata<'_> = Metadata::new("outboxd", Level::INFO, None);

/// The metrics of one relay.
pub(crate) struct Metrics {
    handles: Handles,
    proof: Proof,
    topics: Mutex<HashMap<String, Counter>>,
    delivery: Mutex<Delivery>,
    recorder: PrometheusRecorder,
    prometheus: PrometheusHandle,
    dropped_lines: DroppedLines,
    spans: SpanCounts,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

struct Handles {
    leader: Gauge,
    epoch: Gauge,
    backlog: Gauge,
    oldest_age: Gauge,
    measured_age: Gauge,
    heartbeat_age: Gauge,
    dispatched: Counter,
    attempts: Vec<(Outcome, Counter)>,
    emit_to_acknowledged: Histogram,
    other_topics: Counter,
    pages_empty: Counter,
    page_messages: Histogram,
    page_read: Histogram,
    late: Counter,
    durable_wait: Histogram,
    enqueued: Counter,
    settle: Histogram,
    settles_refused: Counter,
    in_flight_messages: Gauge,
    in_flight_bytes: Gauge,
    queue_messages: Gauge,
    queue_bytes: Gauge,
    held_now: Vec<(HoldReason, Gauge)>,
    parked_now: Vec<(HoldReason, Gauge)>,
    held: Vec<(HoldReason, Counter)>,
    parked: Vec<(HoldReason, Counter)>,
    scheduled_now: Gauge,
    scheduled: Counter,
    released: Counter,
    overtaken: Counter,
    skipped: Counter,
    dead_lettered: Counter,
    dead_letter_failures: Counter,
    partition_changes: Counter,
    replayed: Counter,
    replays_open: Vec<(ReplayState, Gauge)>,
    possible_duplicates: Counter,
    outages: [Counter; 2],
    outage_now: [Gauge; 2],
    reconnects: [Counter; 2],
    purged_messages: Counter,
    purged_receipts: Counter,
    swept: Counter,
    stranded: Counter,
    lap_age: Gauge,
    dropped_lines: Counter,
    spans_exported: Counter,
    spans_queue_full: Counter,
    spans_export_failed: Counter,
}

impl Metrics {
    /// Declares and registers everything, at zero.
    ///
    /// # Errors
    /// If a histogram has no buckets: a bug.
    pub(crate) fn new(instance: &str, database: &str, dropped_lines: DroppedLines) -> anyhow::Result<Self> {
        let mut builder = PrometheusBuilder::new();
        for metric in METRICS {
            if let Kind::Histogram(buckets) = metric.kind {
                builder = builder.set_buckets_for_metric(Matcher::Full(metric.name.to_owned()), buckets)?;
            }
        }
        let recorder = builder.build_recorder();
        for Metric { name, kind, help, .. } in METRICS {
            match kind {
                Kind::Counter => recorder.describe_counter((*name).into(), None, (*help).into()),
                Kind::Gauge => recorder.describe_gauge((*name).into(), None, (*help).into()),
                Kind::Histogram(_) => recorder.describe_histogram((*name).into(), None, (*help).into()),
            }
        }
        let info = vec![
            Label::new("version", env!("CARGO_PKG_VERSION")),
            Label::new("instance_name", instance.to_owned()),
            Label::new("database", database.to_owned()),
        ];
        let info = recorder.register_gauge(&Key::from_parts("outboxd_build_info", info), &METADATA);
        info.set(1.0);
        let handles = Handles::register(&recorder);
        let proof = Proof::register(&recorder);
        let prometheus = recorder.handle();
        let delivery = Mutex::new(Delivery::new(Instant::now()));
        let spans = SpanCounts::default();
        let topics = Mutex::default();
        Ok(Self { handles, proof, topics, delivery, recorder, prometheus, dropped_lines, spans })
    }

    /// Where spans are counted.
    pub(crate) fn span_counts(&self) -> SpanCounts {
        self.spans.clone()
    }

    /// The exposition, with what depends on the time of asking computed now.
    pub(crate) fn render(&self) -> String {
        let now = Instant::now();
        let (oldest, measured, heartbeat, lap) = {
            let delivery = self.delivery();
            let (oldest, measured) = (delivery.oldest_age(now), delivery.measured_age(now));
            (oldest, measured, delivery.heartbeat_age(now), delivery.lap_age(now))
        };
        self.handles.lap_age.set(lap.as_secs_f64());
        self.handles.oldest_age.set(oldest.as_secs_f64());
        self.handles.measured_age.set(measured.as_secs_f64());
        self.handles.heartbeat_age.set(heartbeat.as_secs_f64());
        self.proof.now();
        self.handles.dropped_lines.absolute(self.dropped_lines.get());
        self.handles.spans_exported.absolute(self.spans.exported());
        self.handles.spans_queue_full.absolute(self.spans.queue_full());
        self.handles.spans_export_failed.absolute(self.spans.export_failed());
        self.prometheus.render()
    }

    /// Whether this relay verifies continuously now.
    pub(crate) fn verifying(&self, does: bool) {
        self.proof.verifying(does);
    }

    /// What a turn of the continuous verify found.
    pub(crate) fn verified(&self, report: &Report) {
        self.proof.verified(report);
    }

    /// Whether this relay sends canaries now.
    pub(crate) fn sending_canaries(&self, does: bool) {
        self.proof.sending_canaries(does);
    }

    /// A canary was consumed so long after it was emitted.
    pub(crate) fn canary_seen(&self, after: Duration) {
        self.proof.canary_seen(after);
    }

    /// A canary was not emitted, or not seen in time.
    pub(crate) fn canary_failed(&self) {
        self.proof.canary_failed();
    }

    /// Empties the histograms' buffers; to be called about once a second.
    pub(crate) fn upkeep(&self) {
        self.prometheus.run_upkeep();
    }

    fn delivery(&self) -> std::sync::MutexGuard<'_, Delivery> {
        self.delivery.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn acknowledged(&self, topic: &str) {
        let mut topics = self.topics.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(counter) = topics.get(topic) {
            counter.increment(1);
        } else if topics.len() < TOPICS_MAX {
            let counter = counter(&self.recorder, "outboxd_acknowledged_total", &[("topic", topic)]);
            counter.increment(1);
            topics.insert(topic.to_owned(), counter);
        } else {
            self.handles.other_topics.increment(1);
        }
    }

    fn backlog_measured(&self, backlog: &Backlog) {
        self.delivery().measured(Instant::now(), backlog);
        self.handles.backlog.set(to_f64(backlog.messages));
        self.handles.scheduled_now.set(to_f64(backlog.scheduled));
        for (state, gauge) in &self.handles.replays_open {
            let open = backlog.replays.iter().find(|(its, _)| its == state);
            gauge.set(to_f64(open.map_or(0, |(_, replays)| *replays)));
        }
        let (mut held, mut parked) = (HashMap::new(), HashMap::new());
        for (state, reason, messages) in &backlog.held {
            let by_reason = if state == "parked" { &mut parked } else { &mut held };
            *by_reason.entry(reason.as_str()).or_insert(0) += messages;
        }
        for (gauges, counts) in [(&self.handles.held_now, &held), (&self.handles.parked_now, &parked)] {
            for (reason, gauge) in gauges {
                gauge.set(to_f64(counts.get(reason.as_str()).copied().unwrap_or(0)));
            }
        }
    }

    fn in_flight(&self, messages: usize, bytes: usize, publisher: PublisherStats) {
        self.handles.in_flight_messages.set(to_f64(messages as u64));
        self.handles.in_flight_bytes.set(to_f64(bytes as u64));
        self.handles.queue_messages.set(to_f64(publisher.queue_messages));
        self.handles.queue_bytes.set(to_f64(publisher.queue_bytes));
    }

    fn outage(&self, side: Side, now: bool) {
        let index = side_index(side);
        if now {
            self.handles.outages[index].increment(1);
        }
        self.handles.outage_now[index].set(if now { 1.0 } else { 0.0 });
    }
}

impl Observe for Metrics {
    fn observe(&self, event: &Event<'_>) {
        let handles = &self.handles;
        match *event {
            Event::Heartbeat => self.delivery().beat(Instant::now()),
            Event::Leading { epoch } => {
                handles.leader.set(1.0);
                handles.epoch.set(to_f64(u64::try_from(epoch).unwrap_or(0)));
            }
            Event::StandingBy | Event::LeadLost { .. } => {
                handles.leader.set(0.0);
                self.delivery().swept(Instant::now(), None);
            }
            Event::SettleRefused => handles.settles_refused.increment(1),
            Event::OutageBegan { side } => self.outage(side, true),
            Event::OutageEnded { side, .. } => self.outage(side, false),
            Event::Reconnected { side } => handles.reconnects[side_index(side)].increment(1),
            Event::PageRead { messages, late, took } => {
                handles.page_read.record(took);
                if messages == 0 {
                    handles.pages_empty.increment(1);
                } else {
                    handles.page_messages.record(to_f64(messages as u64));
                }
                handles.late.increment(late as u64);
            }
            Event::PageDurable { waited } => handles.durable_wait.record(waited),
            Event::Enqueued { messages } => handles.enqueued.increment(messages as u64),
            Event::Acknowledged { topic, age } => {
                handles.emit_to_acknowledged.record(age);
                self.acknowledged(topic);
            }
            Event::Attempt { outcome, messages } => add(&handles.attempts, &outcome, messages),
            Event::Held { reason, parked: true } => add(&handles.parked, &reason, 1),
            Event::Held { reason, parked: false } => add(&handles.held, &reason, 1),
            Event::Scheduled => handles.scheduled.increment(1),
            Event::Overtaken => handles.overtaken.increment(1),
            Event::Skipped => handles.skipped.increment(1),
            Event::DeadLettered => handles.dead_lettered.increment(1),
            Event::DeadLetterFailed => handles.dead_letter_failures.increment(1),
            Event::Replayed { topic } => {
                handles.replayed.increment(1);
                self.acknowledged(topic);
            }
            Event::PartitionsChanged => handles.partition_changes.increment(1),
            Event::Released { messages } => handles.released.increment(messages as u64),
            Event::Settling => {}
            Event::Settled { messages, took } => {
                handles.dispatched.increment(messages);
                handles.settle.record(took);
                self.delivery().settled(messages);
            }
            Event::PossibleDuplicates { messages } => handles.possible_duplicates.increment(messages),
            Event::InFlight { messages, bytes, publisher } => self.in_flight(messages, bytes, publisher),
            Event::BacklogMeasured(backlog) => self.backlog_measured(backlog),
            Event::PurgeStep(purged) => {
                handles.purged_messages.increment(purged.messages);
                handles.purged_receipts.increment(purged.receipts);
            }
            Event::SweepTurn(swept) => {
                handles.swept.increment(swept.compared);
                handles.stranded.increment(swept.stranded.len() as u64);
                self.delivery().swept(Instant::now(), Some(swept.lap_age));
            }
        }
    }
}

impl Handles {
    fn register(recorder: &PrometheusRecorder) -> Self {
        let counter = |name| counter(recorder, name, &[]);
        let gauge = |name| gauge(recorder, name, &[]);
        let histogram = |name| recorder.register_histogram(&Key::from_name(declared(name)), &METADATA);
        let by_reason_now = |name| {
            HoldReason::ALL
                .map(|reason| (reason, self::gauge(recorder, name, &[("reason", reason.as_str())])))
                .into()
        };
        let by_reason = |name| {
            HoldReason::ALL
                .map(|reason| (reason, self::counter(recorder, name, &[("reason", reason.as_str())])))
                .into()
        };
        let by_side = |name| {
            [Side::Database, Side::Kafka]
                .map(|side| self::counter(recorder, name, &[("side", side.as_str())]))
        };
        let spans_dropped =
            |reason| self::counter(recorder, "outboxd_spans_dropped_total", &[("reason", reason)]);
        Self {
            leader: gauge("outboxd_leader"),
            epoch: gauge("outboxd_epoch"),
            backlog: gauge("outboxd_backlog_messages"),
            oldest_age: gauge("outboxd_oldest_undelivered_age_seconds"),
            measured_age: gauge("outboxd_backlog_measurement_age_seconds"),
            heartbeat_age: gauge("outboxd_heartbeat_age_seconds"),
            dispatched: counter("outboxd_dispatched_total"),
            attempts: Outcome::ALL
                .map(|outcome| {
                    let label = [("outcome", outcome.as_str())];
                    (outcome, self::counter(recorder, "outboxd_attempts_total", &label))
                })
                .into(),
            emit_to_acknowledged: histogram("outboxd_emit_to_acknowledged_seconds"),
            other_topics: self::counter(recorder, "outboxd_acknowledged_total", &[("topic", OTHER_TOPICS)]),
            pages_empty: counter("outboxd_pages_empty_total"),
            page_messages: histogram("outboxd_page_messages"),
            page_read: histogram("outboxd_page_read_seconds"),
            late: counter("outboxd_late_messages_total"),
            durable_wait: histogram("outboxd_durable_wait_seconds"),
            enqueued: counter("outboxd_enqueued_total"),
            settle: histogram("outboxd_settle_seconds"),
            settles_refused: counter("outboxd_settles_refused_total"),
            in_flight_messages: gauge("outboxd_in_flight_messages"),
            in_flight_bytes: gauge("outboxd_in_flight_bytes"),
            queue_messages: gauge("outboxd_librdkafka_queue_messages"),
            queue_bytes: gauge("outboxd_librdkafka_queue_bytes"),
            held_now: by_reason_now("outboxd_held_messages"),
            parked_now: by_reason_now("outboxd_parked_messages"),
            held: by_reason("outboxd_held_total"),
            parked: by_reason("outboxd_parked_total"),
            scheduled_now: gauge("outboxd_scheduled_messages"),
            scheduled: counter("outboxd_scheduled_total"),
            released: counter("outboxd_released_total"),
            overtaken: counter("outboxd_overtaken_total"),
            skipped: counter("outboxd_skipped_total"),
            dead_lettered: counter("outboxd_dead_lettered_total"),
            dead_letter_failures: counter("outboxd_dead_letter_failures_total"),
            partition_changes: counter("outboxd_partition_changes_total"),
            replayed: counter("outboxd_replayed_total"),
            replays_open: replays_open(recorder),
            possible_duplicates: counter("outboxd_possible_duplicates_total"),
            outages: by_side("outboxd_outages_total"),
            outage_now: [Side::Database, Side::Kafka]
                .map(|side| self::gauge(recorder, "outboxd_outage", &[("side", side.as_str())])),
            reconnects: by_side("outboxd_reconnects_total"),
            purged_messages: self::counter(recorder, "outboxd_purged_rows_total", &[("rows", "messages")]),
            purged_receipts: self::counter(recorder, "outboxd_purged_rows_total", &[("rows", "receipts")]),
            swept: counter("outboxd_swept_total"),
            stranded: counter("outboxd_stranded_total"),
            lap_age: gauge("outboxd_sweep_lap_age_seconds"),
            dropped_lines: counter("outboxd_log_lines_dropped_total"),
            spans_exported: counter("outboxd_spans_exported_total"),
            spans_queue_full: spans_dropped("queue_full"),
            spans_export_failed: spans_dropped("export_failed"),
        }
    }
}

fn replays_open(recorder: &PrometheusRecorder) -> Vec<(ReplayState, Gauge)> {
    let open = ReplayState::ALL.into_iter().filter(|state| state.is_open());
    open.map(|state| (state, gauge(recorder, "outboxd_replays_open", &[("state", state.as_str())]))).collect()
}

fn counter(recorder: &PrometheusRecorder, name: &'static str, labels: &[(&'static str, &str)]) -> Counter {
    recorder.register_counter(&key(name, labels), &METADATA)
}

fn gauge(recorder: &PrometheusRecorder, name: &'static str, labels: &[(&'static str, &str)]) -> Gauge {
    recorder.register_gauge(&key(name, labels), &METADATA)
}

fn key(name: &'static str, labels: &[(&'static str, &str)]) -> Key {
    let labels: Vec<Label> =
        labels.iter().map(|(name, value)| Label::new(*name, (*value).to_owned())).collect();
    Key::from_parts(declared(name), labels)
}

/// A name, which must be among the declared ones.
fn declared(name: &'static str) -> &'static str {
    debug_assert!(METRICS.iter().any(|metric| metric.name == name), "{name} is not declared");
    name
}

fn add<T: PartialEq>(counters: &[(T, Counter)], label: &T, count: u64) {
    if let Some((_, counter)) = counters.iter().find(|(its, _)| its == label) {
        counter.increment(count);
    }
}

fn side_index(side: Side) -> usize {
    match side {
        Side::Database => 0,
        Side::Kafka => 1,
    }
}

/// Prometheus counts in floats; exact up to 2^53.
fn to_f64(number: u64) -> f64 {
    u32::try_from(number).map_or_else(|_| number as f64, f64::from)
}

#[cfg(test)]
mod tests;
