//! What the clients tell about their connections: the last trouble, and log lines that repeat at most now and then.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use outboxd_core::{DeliveryError, Fault};
use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaErrorCode;

use crate::fault::{fault_of, name_of};

/// The same trouble is logged at most so often: librdkafka reports a refused password five times a second.
const LOG_REPEAT_AFTER: Duration = Duration::from_secs(30);

/// How long a topic whose records were refused for want of authorisation counts as not writable, whatever its metadata
/// says: a principal that may describe a topic and not write to it is only found out by writing.
const UNAUTHORISED_FOR: Duration = Duration::from_secs(15);

/// Trouble with the connection to Kafka.
#[derive(Clone, Debug)]
pub struct ConnectionError {
    /// What it is, in our words.
    pub fault: Fault,
    /// librdkafka's name for it.
    pub code: String,
    /// librdkafka's explanation, with the broker's address. Holds no configured secret.
    pub reason: String,
    /// When it was reported.
    pub at: Instant,
}

impl fmt::Display for ConnectionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.reason)
    }
}

/// A handle to what is known of the connections; cheap to clone, and valid across renewals.
#[derive(Clone, Debug, Default)]
pub struct Connection(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// Whoever asks says what is wrong in another way; nothing is logged as a warning or worse.
    silent: bool,
    /// Whether `last_error` is set, so that a delivery need not take the lock to clear nothing.
    troubled: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    last_error: Option<ConnectionError>,
    /// By what the line is about; librdkafka has a few dozen of them.
    logged: HashMap<String, Logged>,
    /// Topics that refused a record for want of authorisation, and when.
    unauthorised: HashMap<String, Instant>,
}

#[derive(Debug)]
struct Logged {
    at: Instant,
    suppressed: u64,
}

impl Connection {
    /// One that keeps the last trouble and logs none of it.
    pub(crate) fn silent() -> Self {
        Self(Arc::new(Shared { silent: true, ..Shared::default() }))
    }

    /// The last trouble, or `None` once a broker has answered since.
    #[must_use]
    pub fn last_error(&self) -> Option<ConnectionError> {
        self.state().last_error.clone()
    }

    /// A broker answered.
    pub(crate) fn answered(&self) {
        if self.0.troubled.swap(false, Ordering::Relaxed) {
            self.state().last_error = None;
        }
    }

    /// A topic refused a record for want of authorisation.
    pub(crate) fn topic_unauthorised(&self, topic: &str) {
        let now = Instant::now();
        let mut state = self.state();
        state.unauthorised.retain(|_, at| now.duration_since(*at) < UNAUTHORISED_FOR);
        state.unauthorised.insert(topic.to_owned(), now);
    }

    /// Whether it did so a moment ago.
    pub(crate) fn is_topic_unauthorised(&self, topic: &str) -> bool {
        self.state().unauthorised.get(topic).is_some_and(|at| at.elapsed() < UNAUTHORISED_FOR)
    }

    /// Why nothing was reached: what the clients complained about, or else what the call itself said.
    pub(crate) fn unreachable(&self, error: &KafkaError) -> DeliveryError {
        let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown);
        match (fault_of(code), self.last_error()) {
            (Fault::Unreachable | Fault::TimedOut | Fault::Unknown, Some(last)) => {
                DeliveryError { fault: last.fault, code: last.code }
            }
            // The call did not get through, whatever its code: nothing is known of the topic.
            (Fault::Unknown, None) => DeliveryError { fault: Fault::Unreachable, code: name_of(code) },
            (fault, _) => DeliveryError { fault, code: name_of(code) },
        }
    }

    fn troubled(&self, code: RDKafkaErrorCode, reason: &str) {
        let fault = fault_of(code);
        let name = name_of(code);
        // That no broker is up follows from something that was reported before and says more.
        let vague = code == RDKafkaErrorCode::AllBrokersDown;
        {
            let mut state = self.state();
            if !(vague && state.last_error.is_some()) {
                let error = ConnectionError {
                    fault,
                    code: name.clone(),
                    reason: reason.to_owned(),
                    at: Instant::now(),
                };
                state.last_error = Some(error);
            }
        }
        self.0.troubled.store(true, Ordering::Relaxed);
        let Some(suppressed) = self.may_log(&name) else { return };
        match fault {
            // Nobody but an operator can mend these.
            Fault::Authentication | Fault::ClusterUnauthorized => {
                tracing::error!(target: "outboxd::publish", error = %name, reason, suppressed, "Kafka refuses the relay");
            }
            _ => {
                tracing::warn!(target: "outboxd::publish", error = %name, reason, suppressed, "Kafka connection in trouble");
            }
        }
    }

    /// Whether a line about this may be logged now: the number of lines held back since the last one.
    fn may_log(&self, about: &str) -> Option<u64> {
        if self.0.silent {
            return None;
        }
        let now = Instant::now();
        let mut state = self.state();
        match state.logged.get_mut(about) {
            Some(logged) if now.duration_since(logged.at) < LOG_REPEAT_AFTER => {
                logged.suppressed += 1;
                None
            }
            Some(logged) => {
                logged.at = now;
                Some(std::mem::take(&mut logged.suppressed))
            }
            None => {
                state.logged.insert(about.to_owned(), Logged { at: now, suppressed: 0 });
                Some(0)
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is a single assignment: a panic elsewhere leaves nothing half done.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends a client off the async threads, because its own are joined. One that does not end is left behind: nothing of it is sent any
/// more, and whoever takes the lead next must not wait for it.
pub(crate) async fn end_client(end: impl FnOnce() + Send + 'static) {
    const WITHIN: Duration = Duration::from_secs(10);
    if tokio::time::timeout(WITHIN, tokio::task::spawn_blocking(end)).await.is_err() {
        tracing::warn!(target: "outboxd::publish", "a Kafka client does not end; its threads are left behind");
    }
}

impl ClientContext for Connection {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        match level {
            // A broker that has just started is still loading; if it lasts, the loop calls it an outage.
            RDKafkaLogLevel::Warning if line.ends_with(": retrying") => {
                if let Some(suppressed) = self.may_log(facility) {
                    tracing::info!(target: "outboxd::publish", facility, suppressed, "librdkafka: {line}");
                }
            }
            // A client that reads is given the settings of the one that publishes.
            RDKafkaLogLevel::Warning if line.ends_with("will be ignored by this consumer instance") => {
                tracing::debug!(target: "outboxd::publish", facility, "librdkafka: {line}");
            }
            RDKafkaLogLevel::Emerg
            | RDKafkaLogLevel::Alert
            | RDKafkaLogLevel::Critical
            | RDKafkaLogLevel::Error
            | RDKafkaLogLevel::Warning => {
                if let Some(suppressed) = self.may_log(facility) {
                    tracing::warn!(target: "outboxd::publish", facility, suppressed, "librdkafka: {line}");
                }
            }
            RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info => {
                tracing::debug!(target: "outboxd::publish", facility, "librdkafka: {line}");
            }
            RDKafkaLogLevel::Debug => {
                tracing::trace!(target: "outboxd::publish", facility, "librdkafka: {line}");
            }
        }
    }

    fn stats_raw(&self, _statistics: &[u8]) {}

    fn error(&self, error: KafkaError, reason: &str) {
        self.troubled(error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown), reason);
    }
}

impl rdkafka::consumer::ConsumerContext for Connection {}

impl rdkafka::producer::ProducerContext for Connection {
    type DeliveryOpaque = ();

    /// Clients with this context look things up and publish nothing.
    fn delivery(&self, _delivered: &rdkafka::message::DeliveryResult<'_>, (): ()) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repeated_trouble_is_logged_once_and_counted() {
        let connection = Connection::default();
        assert_eq!(connection.may_log("FAIL"), Some(0));
        for _ in 0..50 {
            assert_eq!(connection.may_log("FAIL"), None);
        }
        assert_eq!(connection.may_log("other"), Some(0));
        connection.state().logged.get_mut("FAIL").unwrap().at -= LOG_REPEAT_AFTER;
        assert_eq!(connection.may_log("FAIL"), Some(50));
    }

    #[test]
    fn the_cause_is_kept_when_all_brokers_are_down_because_of_it() {
        let connection = Connection::default();
        connection.troubled(RDKafkaErrorCode::AllBrokersDown, "1/1 brokers are down");
        assert_eq!(connection.last_error().unwrap().fault, Fault::Unreachable);
        connection.troubled(RDKafkaErrorCode::Authentication, "invalid credentials");
        connection.troubled(RDKafkaErrorCode::AllBrokersDown, "1/1 brokers are down");
        assert_eq!(connection.last_error().unwrap().fault, Fault::Authentication);
        connection.answered();
        assert!(connection.last_error().is_none());
    }

    #[test]
    fn a_look_up_that_reaches_nobody_names_the_cause() {
        let connection = Connection::default();
        let timed_out = KafkaError::MetadataFetch(RDKafkaErrorCode::OperationTimedOut);
        assert_eq!(connection.unreachable(&timed_out).fault, Fault::TimedOut);
        connection.troubled(RDKafkaErrorCode::Authentication, "invalid credentials");
        assert_eq!(connection.unreachable(&timed_out).fault, Fault::Authentication);
    }
}
