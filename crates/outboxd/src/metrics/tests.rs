//! What the metrics promise to whoever reads them.

use std::time::Duration;

use super::*;

fn metrics() -> Metrics {
    Metrics::new("relay-1", "sqlite", DroppedLines::default()).unwrap()
}

fn value(text: &str, series: &str) -> f64 {
    text.lines()
        .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '))
        .unwrap_or_else(|| panic!("{series} is not among\n{text}"))
        .parse()
        .unwrap()
}

fn committed(path: &str) -> String {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn everything_declared_is_there_from_the_start_and_nothing_else() {
    let text = metrics().render();
    let mut rendered: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
    let mut declared: Vec<_> =
        METRICS.iter().map(|metric| format!("{} {}", metric.name, metric.kind.as_str())).collect();
    rendered.sort_unstable();
    declared.sort_unstable();
    assert_eq!(rendered, declared);
    for (metric, kind) in METRICS.iter().map(|metric| (metric.name, metric.kind)) {
        let at_zero = match kind {
            Kind::Histogram(_) => format!("{metric}_count 0"),
            Kind::Counter | Kind::Gauge => metric.to_owned(),
        };
        assert!(text.lines().any(|line| line.starts_with(&at_zero)), "{at_zero} is not among\n{text}");
        assert!(text.contains(&format!("# HELP {metric} ")), "{metric} has no help");
    }
}

#[test]
fn names_have_the_prefix_base_units_and_total_on_counters_alone() {
    for metric in METRICS {
        assert!(metric.name.starts_with("outboxd_"), "{}", metric.name);
        assert_eq!(metric.name.ends_with("_total"), matches!(metric.kind, Kind::Counter), "{}", metric.name);
        for unit in ["_ms", "_millis", "_kib", "_mb", "_minutes"] {
            assert!(!metric.name.contains(unit), "{}", metric.name);
        }
    }
}

#[test]
fn a_topic_beyond_the_first_hundred_is_counted_as_other() {
    let metrics = metrics();
    for number in 0..TOPICS_MAX + 7 {
        let topic = format!("topic-{number}");
        metrics.observe(&Event::Acknowledged { topic: &topic, age: Duration::from_millis(3) });
        metrics.observe(&Event::Acknowledged { topic: &topic, age: Duration::from_millis(3) });
    }
    let text = metrics.render();
    assert!(value(&text, "outboxd_acknowledged_total{topic=\"topic-0\"}") > 1.5);
    assert!(value(&text, "outboxd_acknowledged_total{topic=\"other\"}") > 13.5);
    let series = text.lines().filter(|line| line.starts_with("outboxd_acknowledged_total{")).count();
    assert_eq!(series, TOPICS_MAX + 1);
    assert!(value(&text, "outboxd_emit_to_acknowledged_seconds_bucket{le=\"0.005\"}") > 213.5);
}

#[test]
fn held_and_parked_messages_are_told_apart_by_reason_and_go_back_to_zero() {
    let metrics = metrics();
    let mut backlog = Backlog {
        messages: 12,
        oldest_age: Duration::from_secs(30),
        scheduled: 0,
        held: vec![
            ("parked".to_owned(), "too_large".to_owned(), 2),
            ("topic".to_owned(), "topic_unknown".to_owned(), 5),
        ],
        replays: vec![(ReplayState::Running, 1), (ReplayState::Stopped, 2)],
    };
    metrics.observe(&Event::BacklogMeasured(&backlog));
    let text = metrics.render();
    assert!((value(&text, "outboxd_parked_messages{reason=\"too_large\"}") - 2.0).abs() < 0.1);
    assert!((value(&text, "outboxd_held_messages{reason=\"topic_unknown\"}") - 5.0).abs() < 0.1);
    assert!((value(&text, "outboxd_backlog_messages") - 12.0).abs() < 0.1);
    assert!(value(&text, "outboxd_oldest_undelivered_age_seconds") >= 30.0);
    assert!((value(&text, "outboxd_replays_open{state=\"stopped\"}") - 2.0).abs() < 0.1);
    assert!(value(&text, "outboxd_replays_open{state=\"paused\"}") < 0.1);
    backlog.held.clear();
    metrics.observe(&Event::BacklogMeasured(&backlog));
    assert!(value(&metrics.render(), "outboxd_parked_messages{reason=\"too_large\"}") < 0.1);
}

#[test]
fn the_documentation_says_what_the_code_says() {
    let document = committed("docs/metrics.md");
    assert!(document.contains(&markdown_table()), "docs/metrics.md is to hold:\n{}", markdown_table());
}

#[test]
fn alerts_and_dashboard_name_metrics_that_exist() {
    for path in
        ["deploy/prometheus/alerts.yml", "deploy/prometheus/alerts_test.yml", "deploy/grafana/outboxd.json"]
    {
        let text = committed(path);
        let named: Vec<&str> = text
            .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .filter(|word| word.starts_with("outboxd_"))
            .map(|word| {
                ["_bucket", "_count", "_sum"].iter().find_map(|end| word.strip_suffix(end)).unwrap_or(word)
            })
            .collect();
        assert!(!named.is_empty(), "{path} names no metric");
        for name in named {
            assert!(
                METRICS.iter().any(|metric| metric.name == name),
                "{path} names {name}, which does not exist"
            );
        }
    }
}
