//! The declarations: name, kind, labels and help of every metric.

/// A metric.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Metric {
    /// Its name.
    pub(crate) name: &'static str,
    /// Its kind.
    pub(crate) kind: Kind,
    /// Its labels, with the values that they take, in words.
    #[cfg_attr(not(test), expect(dead_code, reason = "the documentation's; a test compares"))]
    pub(crate) labels: &'static str,
    /// What it says.
    pub(crate) help: &'static str,
}

/// A metric's kind.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts in buckets with these upper bounds.
    Histogram(&'static [f64]),
}

impl Kind {
    #[cfg(test)]
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram(_) => "histogram",
        }
    }
}

const STATEMENT_SECONDS: &[f64] =
    &[0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
const DELIVERY_SECONDS: &[f64] = &[
    0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
    1_800.0, 7_200.0, 43_200.0,
];
const PAGE_MESSAGES: &[f64] =
    &[1.0, 2.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1_000.0, 2_500.0, 5_000.0, 10_000.0, 100_000.0];

const SIDE: &str = "side: database, kafka";
const REASON: &str = "reason: the words of `held list`";
const NONE: &str = "";

const fn counter(name: &'static str, labels: &'static str, help: &'static str) -> Metric {
    Metric { name, kind: Kind::Counter, labels, help }
}

const fn gauge(name: &'static str, labels: &'static str, help: &'static str) -> Metric {
    Metric { name, kind: Kind::Gauge, labels, help }
}

const fn histogram(name: &'static str, buckets: &'static [f64], help: &'static str) -> Metric {
    Metric { name, kind: Kind::Histogram(buckets), labels: NONE, help }
}

/// Every metric, in the order of the documentation.
pub(crate) const METRICS: &[Metric] = &[
    gauge(
        "outboxd_oldest_undelivered_age_seconds",
        NONE,
        "Age of the oldest committed message that is not dispatched, held ones included; the SLI. Grows with the clock between measurements.",
    ),
    gauge(
        "outboxd_backlog_messages",
        NONE,
        "Committed messages that are neither dispatched nor held, as measured last; exact up to 10,000.",
    ),
    gauge(
        "outboxd_backlog_measurement_age_seconds",
        NONE,
        "Time since the backlog was measured last; grows while the database does not answer.",
    ),
    counter("outboxd_dispatched_total", NONE, "Messages acknowledged by Kafka and settled in the database."),
    histogram(
        "outboxd_emit_to_acknowledged_seconds",
        DELIVERY_SECONDS,
        "From the insert of an intent to Kafka's acknowledgement.",
    ),
    counter(
        "outboxd_acknowledged_total",
        "topic: the first 100 topics, then `other`",
        "Records acknowledged by Kafka, repeated copies included.",
    ),
    counter(
        "outboxd_attempts_total",
        "outcome: acknowledged, outage, try_alone, retry, hold_topic, parked",
        "Attempts to publish by what became of them.",
    ),
    gauge("outboxd_leader", NONE, "1 while this relay leads, 0 while it stands by or has no database."),
    gauge("outboxd_epoch", NONE, "Epoch of this relay's last lead."),
    counter(
        "outboxd_settles_refused_total",
        NONE,
        "Settles refused because another relay had taken the lead; the fence at work.",
    ),
    gauge("outboxd_outage", SIDE, "1 while that side is not available."),
    counter("outboxd_outages_total", SIDE, "Outages begun."),
    counter("outboxd_reconnects_total", SIDE, "Connections or clients made anew after an error."),
    gauge("outboxd_held_messages", REASON, "Messages set aside that will be tried again by themselves, now."),
    gauge("outboxd_parked_messages", REASON, "Messages that wait for an operator, now."),
    counter("outboxd_held_total", REASON, "Messages set aside to be tried again."),
    counter("outboxd_parked_total", REASON, "Messages parked."),
    gauge(
        "outboxd_scheduled_messages",
        NONE,
        "Messages that wait for their time, as measured last; exact up to 10,000.",
    ),
    counter("outboxd_scheduled_total", NONE, "Messages put aside until their time."),
    counter("outboxd_released_total", NONE, "Held messages handed to Kafka again."),
    counter(
        "outboxd_overtaken_total",
        NONE,
        "Messages that later ones of their key may have overtaken: refusals known only from a delivery report, and messages that were held under another topic name.",
    ),
    counter(
        "outboxd_skipped_total",
        NONE,
        "Messages parked whose key went on without them: the policy `skip`.",
    ),
    counter(
        "outboxd_dead_lettered_total",
        NONE,
        "Copies of parked messages acknowledged by their dead-letter topic.",
    ),
    counter(
        "outboxd_dead_letter_failures_total",
        NONE,
        "Messages parked without the copy that their route asks for.",
    ),
    counter(
        "outboxd_partition_changes_total",
        NONE,
        "Changes of a topic's number of partitions: keys are placed anew, and their order is not kept across one.",
    ),
    counter(
        "outboxd_replayed_total",
        NONE,
        "Copies of dispatched messages, asked for by replays, acknowledged by Kafka.",
    ),
    gauge(
        "outboxd_replays_open",
        "state: running, paused, stopped",
        "Replays that are not over, as measured last. A stopped one waits for an operator.",
    ),
    counter(
        "outboxd_possible_duplicates_total",
        NONE,
        "Most records that consumers may see twice because they were published and not settled.",
    ),
    gauge("outboxd_in_flight_messages", NONE, "Messages between read and settled."),
    gauge("outboxd_in_flight_bytes", NONE, "Bytes of messages between read and settled."),
    gauge("outboxd_librdkafka_queue_messages", NONE, "Records in librdkafka's queue."),
    gauge("outboxd_librdkafka_queue_bytes", NONE, "Bytes in librdkafka's queue."),
    histogram("outboxd_page_messages", PAGE_MESSAGES, "Messages in a page that was not empty."),
    histogram("outboxd_page_read_seconds", STATEMENT_SECONDS, "Time of the statement that reads a page."),
    counter("outboxd_pages_empty_total", NONE, "Pages that held nothing."),
    counter(
        "outboxd_late_messages_total",
        NONE,
        "Messages whose transaction committed after later ones had been read.",
    ),
    histogram(
        "outboxd_durable_wait_seconds",
        STATEMENT_SECONDS,
        "From a page being read to its being on the database's disk.",
    ),
    counter("outboxd_enqueued_total", NONE, "Records handed to librdkafka."),
    histogram("outboxd_settle_seconds", STATEMENT_SECONDS, "Time of the statement that settles."),
    counter("outboxd_purged_rows_total", "rows: messages, receipts", "Rows deleted because they were old."),
    counter("outboxd_swept_total", NONE, "Messages that the sweep compared with what became of them."),
    counter(
        "outboxd_stranded_total",
        NONE,
        "Messages that the cursor had passed and nobody had delivered; found by the sweep, then published. Never above 0.",
    ),
    gauge(
        "outboxd_sweep_lap_age_seconds",
        NONE,
        "Time since the sweep has compared the whole table; 0 on a relay that does not lead.",
    ),
    counter(
        "outboxd_verified_total",
        NONE,
        "Messages that the continuous verify found where their receipts say, with their id, key and payload.",
    ),
    counter(
        "outboxd_verify_findings_total",
        "finding: lost, deleted, different, topic_gone, topic_unreadable",
        "What the continuous verify found not to be as it should. Never above 0.",
    ),
    gauge(
        "outboxd_verify_age_seconds",
        NONE,
        "Time since a turn of the continuous verify succeeded; 0 where it is off or the relay does not lead.",
    ),
    histogram(
        "outboxd_canary_seconds",
        DELIVERY_SECONDS,
        "From emitting a canary to reading it from Kafka, as a consumer does.",
    ),
    counter(
        "outboxd_canary_failures_total",
        NONE,
        "Canaries that could not be emitted, or were not seen within canary.every_s; each interval counts.",
    ),
    gauge(
        "outboxd_canary_age_seconds",
        NONE,
        "Time since a canary was seen; 0 where they are off or the relay does not lead.",
    ),
    gauge("outboxd_heartbeat_age_seconds", NONE, "Time since the loop moved last."),
    counter(
        "outboxd_log_lines_dropped_total",
        NONE,
        "Log lines dropped because standard output was blocked.",
    ),
    counter("outboxd_spans_exported_total", NONE, "Spans that the OpenTelemetry collector has taken."),
    counter(
        "outboxd_spans_dropped_total",
        "reason: queue_full, export_failed",
        "Spans dropped because too many waited, or because the collector did not take them.",
    ),
    gauge(
        "outboxd_build_info",
        "version; instance_name; database: postgres, sqlite",
        "Always 1; its labels say what is running.",
    ),
];

/// The table between the marks in `docs/metrics.md`.
#[cfg(test)]
pub(crate) fn markdown_table() -> String {
    let mut text = "| Metric | Kind | Labels | What it says |\n| --- | --- | --- | --- |\n".to_owned();
    for Metric { name, kind, labels, help } in METRICS {
        let labels = if labels.is_empty() { "none" } else { labels };
        text.push_str(&format!("| `{name}` | {} | {labels} | {help} |\n", kind.as_str()));
    }
    text
}
