//! What the continuous verify and the canary say.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, Key, Recorder as _};
use metrics_exporter_prometheus::PrometheusRecorder;
use tokio::time::Instant;

use super::{METADATA, add, counter, declared, gauge};
use crate::verify::{FindingKind, Report};

/// Their metrics.
pub(super) struct Proof {
    verified: Counter,
    findings: Vec<(FindingKind, Counter)>,
    verify_age: Gauge,
    canary: Histogram,
    canary_failures: Counter,
    canary_age: Gauge,
    since: Mutex<Since>,
}

/// When each has last succeeded, or has begun; `None`: it is off, or this relay does not lead.
#[derive(Clone, Copy, Default)]
struct Since {
    verified: Option<Instant>,
    canary: Option<Instant>,
}

impl Proof {
    pub(super) fn register(recorder: &PrometheusRecorder) -> Self {
        const FINDINGS: &str = "outboxd_verify_findings_total";
        let of_kind = |kind: FindingKind| (kind, counter(recorder, FINDINGS, &[("finding", kind.as_str())]));
        Self {
            verified: counter(recorder, "outboxd_verified_total", &[]),
            findings: FindingKind::ALL
                .into_iter()
                .filter(|kind| !kind.is_expected() && *kind != FindingKind::UnexpectedCopy)
                .map(of_kind)
                .collect(),
            verify_age: gauge(recorder, "outboxd_verify_age_seconds", &[]),
            canary: recorder
                .register_histogram(&Key::from_name(declared("outboxd_canary_seconds")), &METADATA),
            canary_failures: counter(recorder, "outboxd_canary_failures_total", &[]),
            canary_age: gauge(recorder, "outboxd_canary_age_seconds", &[]),
            since: Mutex::default(),
        }
    }

    /// Ages grow with the clock.
    pub(super) fn now(&self) {
        let since = *self.since();
        let age =
            |since: Option<Instant>| since.map_or(Duration::ZERO, |since| since.elapsed()).as_secs_f64();
        self.verify_age.set(age(since.verified));
        self.canary_age.set(age(since.canary));
    }

    /// This relay verifies from now on, or does so no longer.
    pub(super) fn verifying(&self, does: bool) {
        let mut since = self.since();
        since.verified = does.then(|| since.verified.unwrap_or_else(Instant::now));
    }

    /// A turn of the continuous verify.
    pub(super) fn verified(&self, report: &Report) {
        self.verified.increment(report.verified);
        for (kind, count) in &report.findings {
            add(&self.findings, kind, *count);
        }
        self.since().verified = Some(Instant::now());
    }

    /// This relay sends canaries from now on, or does so no longer.
    pub(super) fn sending_canaries(&self, does: bool) {
        let mut since = self.since();
        since.canary = does.then(|| since.canary.unwrap_or_else(Instant::now));
    }

    /// A canary was consumed so long after it was emitted.
    pub(super) fn canary_seen(&self, after: Duration) {
        self.canary.record(after);
        self.since().canary = Some(Instant::now());
    }

    /// A canary was not emitted, or not seen in time.
    pub(super) fn canary_failed(&self) {
        self.canary_failures.increment(1);
    }

    fn since(&self) -> MutexGuard<'_, Since> {
        self.since.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
