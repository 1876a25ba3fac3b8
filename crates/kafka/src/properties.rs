//! Which of librdkafka's settings may be passed through. What would void a promise, take over what the relay decides
//! itself, or run code is refused by name; what librdkafka does not take is named too. All problems are found at once.

use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;
use rdkafka::producer::BaseProducer;
use rdkafka::types::RDKafkaConfRes;

use crate::config::{ClientLimits, KafkaConfig};

/// Why a setting is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {reason}")]
pub struct PropertyProblem {
    /// The field of [`KafkaConfig`], or `properties."acks"`.
    pub key: String,
    /// Why, and what to do. Never a value.
    pub reason: String,
}

const ORDER: &str = "fixed by the relay: another value would lose messages or their order";
const OUTAGE: &str = "fixed by the relay: a record that is given up in an outage is overtaken by later ones";
const PLACE: &str = "fixed to murmur2_random: another partitioner moves keys to other partitions";
const TRANSACTIONS: &str = "the relay publishes without Kafka transactions";
const REPORTS: &str = "the relay needs every delivery report";
const CODE: &str = "would run code or load a library that the configuration names";
const CREATE: &str = "the relay never creates topics";
const QUEUE: &str = "the queue is bounded by relay.in_flight_bytes, and its wait by linger.ms";
const BATCH: &str = "follows from the topics' max.message.bytes";
const COMPRESSION: &str = "set kafka.compression";
const WIRE: &str = "the relay asks the brokers what they speak; an old format would drop headers";
const UNREAD: &str = "nothing reads it: the relay has metrics of its own";
const MOCK: &str = "would replace the brokers by one inside the process, which forgets everything";
const UNKNOWN: &str = "librdkafka has no such setting (or was built without it)";
const NUL: &str = "contains a NUL byte";
const INTERNAL: &str = "belongs to the relay's use of librdkafka";

/// Settings that are refused, each with the reason. A name that ends in `*` stands for all that begin so.
const BARRED: &[(&str, &str)] = &[
    ("enable.idempotence", ORDER),
    ("enable.gapless.guarantee", "makes every refused record fatal for the whole client"),
    ("acks", ORDER),
    ("request.required.acks", ORDER),
    ("max.in.flight", ORDER),
    ("max.in.flight.requests.per.connection", ORDER),
    ("queuing.strategy", ORDER),
    ("msg_order_cmp", ORDER),
    ("message.timeout.ms", OUTAGE),
    ("delivery.timeout.ms", OUTAGE),
    ("message.send.max.retries", OUTAGE),
    ("retries", OUTAGE),
    ("partitioner", PLACE),
    ("partitioner_cb", PLACE),
    ("transactional.id", TRANSACTIONS),
    ("transaction.timeout.ms", TRANSACTIONS),
    ("delivery.report.only.error", REPORTS),
    ("dr_cb", REPORTS),
    ("dr_msg_cb", REPORTS),
    ("enabled_events", REPORTS),
    ("sasl.kerberos.kinit.cmd", CODE),
    ("plugin.library.paths", CODE),
    ("interceptors", CODE),
    ("ssl.engine.*", CODE),
    ("ssl_engine_callback_data", CODE),
    ("ssl.providers", CODE),
    ("allow.auto.create.topics", CREATE),
    ("queue.buffering.*", QUEUE),
    ("batch.size", BATCH),
    ("message.max.bytes", "set kafka.message_max_bytes"),
    ("compression.type", COMPRESSION),
    ("compression.codec", COMPRESSION),
    ("bootstrap.servers", "set kafka.bootstrap_servers"),
    ("metadata.broker.list", "set kafka.bootstrap_servers"),
    ("client.id", "the client is named after relay.instance"),
    ("api.version.request", WIRE),
    ("api.version.fallback.ms", WIRE),
    ("broker.version.fallback", WIRE),
    ("statistics.interval.ms", UNREAD),
    ("stats_cb", UNREAD),
    ("test.mock.*", MOCK),
    ("log.queue", INTERNAL),
    ("log_level", "set log.filter; librdkafka's own debug contexts are the property debug"),
    ("internal.termination.signal", INTERNAL),
    ("group.id", "the relay reads nothing from Kafka"),
];

/// Why a property may not be passed through, if it may not. Underscores count as dots, because they are the same in an
/// environment variable.
#[must_use]
pub fn barred(property: &str) -> Option<&'static str> {
    let property = property.replace('_', ".");
    BARRED.iter().find_map(|(name, reason)| {
        let name = name.replace('_', ".");
        let matches = name.strip_suffix('*').map_or(property == name, |prefix| property.starts_with(prefix));
        matches.then_some(*reason)
    })
}

/// Why a property may not be passed through whatever its value is: it is barred, or librdkafka does not know it.
#[must_use]
pub fn refused_by_name(property: &str) -> Option<&'static str> {
    // The empty value loads and runs nothing; whether it is taken does not matter here.
    barred(property).or_else(|| match ClientConfig::new().set(property, "").create_native_config() {
        Err(KafkaError::ClientConfig(RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN, ..)) => Some(UNKNOWN),
        Err(KafkaError::Nul(_)) => Some(NUL),
        Ok(_) | Err(_) => None,
    })
}

/// Whether a property's value must never be shown. Errs on the side of secrecy.
#[must_use]
pub fn is_secret(property: &str) -> bool {
    const WORDS: [&str; 8] =
        ["password", "secret", "passphrase", ".pem", "oauthbearer.config", "assertion", "token", "jaas"];
    let property = property.to_ascii_lowercase();
    WORDS.iter().any(|word| property.contains(word))
}

/// Everything that is wrong with the configuration, without asking a broker. Reads the files that it names and takes
/// some milliseconds: call it off the async threads.
#[must_use]
pub fn validate(config: &KafkaConfig) -> Vec<PropertyProblem> {
    let mut problems = own_problems(config);
    problems.extend(config.properties.iter().filter_map(|(key, value)| {
        let reason = barred(key).map(str::to_owned).or_else(|| refused_by_librdkafka(key, value))?;
        Some(PropertyProblem { key: format!("properties.{key:?}"), reason })
    }));
    if problems.is_empty() {
        problems.extend(problem_of_the_whole(config));
    }
    problems
}

fn own_problems(config: &KafkaConfig) -> Vec<PropertyProblem> {
    let mut problems = Vec::new();
    let mut problem = |key: &str, reason: String| {
        problems.push(PropertyProblem { key: key.to_owned(), reason });
    };
    if config.bootstrap_servers.trim().is_empty() {
        problem("bootstrap_servers", "is empty; give at least one host:port".to_owned());
    }
    if !(1_000..=1_000_000_000).contains(&config.message_max_bytes) {
        problem("message_max_bytes", "must be within 1000 to 1000000000".to_owned());
    }
    if config.queue_bytes < config.message_max_bytes.saturating_add(1_024) {
        problem("queue_bytes", "must hold a record of message_max_bytes and 1024 more".to_owned());
    }
    if !(1..=10_000_000).contains(&config.queue_messages) {
        problem("queue_messages", "must be within 1 to 10000000".to_owned());
    }
    problems
}

/// librdkafka's error text repeats the value, which may be a secret in the wrong place: only the verdict is kept.
fn refused_by_librdkafka(key: &str, value: &str) -> Option<String> {
    let refused = ClientConfig::new().set(key, value).create_native_config().err()?;
    Some(match refused {
        KafkaError::ClientConfig(RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN, ..) => UNKNOWN.to_owned(),
        KafkaError::ClientConfig(..) => {
            "librdkafka does not take this value; its CONFIGURATION.md has the range".to_owned()
        }
        _ => NUL.to_owned(),
    })
}

/// Settings that contradict one another are only found when a client is made: one without brokers, which connects nowhere.
fn problem_of_the_whole(config: &KafkaConfig) -> Option<PropertyProblem> {
    let mut client = config.producer(ClientLimits::of(config));
    client.remove("bootstrap.servers");
    let refused = client.create::<BaseProducer>().err()?;
    Some(PropertyProblem { key: "properties".to_owned(), reason: creation_reason(&refused) })
}

/// Why librdkafka made no client, without values: file names and OpenSSL's reasons are kept.
pub(crate) fn creation_reason(error: &KafkaError) -> String {
    match error {
        KafkaError::ClientCreation(reason) => reason.trim().to_owned(),
        KafkaError::ClientConfig(_, _, key, _) => format!("librdkafka does not take the value of {key}"),
        KafkaError::Nul(_) => "a value contains a NUL byte".to_owned(),
        other => other
            .rdkafka_error_code()
            .map_or_else(|| "librdkafka made no client".to_owned(), |code| format!("{code:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(properties: &[(&str, &str)]) -> KafkaConfig {
        let mut config = KafkaConfig::new("localhost:9092");
        config.properties =
            properties.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        config
    }

    fn keys(problems: &[PropertyProblem]) -> Vec<&str> {
        problems.iter().map(|problem| problem.key.as_str()).collect()
    }

    #[test]
    fn the_defaults_are_accepted() {
        assert_eq!(validate(&KafkaConfig::new("localhost:9092")), []);
    }

    #[test]
    fn settings_of_tls_and_sasl_pass_and_the_level_of_compression() {
        let config = with(&[
            ("security.protocol", "sasl_ssl"),
            ("sasl.mechanism", "SCRAM-SHA-512"),
            ("sasl.username", "relay"),
            ("sasl.password", "pw"),
            ("compression.level", "3"),
            ("linger.ms", "1"),
            ("socket.timeout.ms", "5000"),
        ]);
        assert_eq!(validate(&config), []);
    }

    #[test]
    fn this_build_has_every_compression() {
        for compression in crate::Compression::ALL {
            assert_eq!(validate(&KafkaConfig { compression, ..with(&[]) }), []);
        }
    }

    #[test]
    fn every_barred_setting_is_refused_with_its_reason() {
        for (name, reason) in BARRED {
            let property = name.replace('*', "x");
            let problems = validate(&with(&[(property.as_str(), "1")]));
            assert_eq!(keys(&problems), [format!("properties.{property:?}")]);
            assert_eq!(problems[0].reason, *reason);
            assert_eq!(barred(&property.replace('_', ".")), Some(*reason), "as configuration files spell it");
        }
    }

    #[test]
    fn all_problems_are_reported_at_once_and_none_repeats_a_value() {
        let mut config = with(&[
            ("acks", "canary-0"),
            ("no.such.setting", "canary-1"),
            ("security.protocol", "canary-2"),
            ("linger.ms", "canary-3"),
            ("compression.level", "3"),
        ]);
        config.bootstrap_servers = " ".to_owned();
        config.queue_bytes = 10;
        let problems = validate(&config);
        assert_eq!(
            keys(&problems),
            [
                "bootstrap_servers",
                "queue_bytes",
                "properties.\"acks\"",
                "properties.\"linger.ms\"",
                "properties.\"no.such.setting\"",
                "properties.\"security.protocol\"",
            ]
        );
        assert!(!format!("{problems:?}").contains("canary"), "{problems:?}");
    }

    #[test]
    fn contradictions_between_settings_are_found_without_a_broker() {
        let problems =
            validate(&with(&[("security.protocol", "ssl"), ("ssl.ca.location", "/nonexistent/ca.pem")]));
        assert_eq!(keys(&problems), ["properties"]);
        let problems =
            validate(&with(&[("security.protocol", "sasl_ssl"), ("sasl.mechanism", "SCRAM-SHA-512")]));
        assert_eq!(keys(&problems), ["properties"], "no user name and password");
    }

    #[test]
    fn a_damaged_key_or_certificate_is_named_and_not_shown() {
        for property in ["ssl.key.pem", "ssl.certificate.pem", "ssl.ca.pem"] {
            let problems = validate(&with(&[("security.protocol", "ssl"), (property, "canary")]));
            assert_eq!(keys(&problems), ["properties"]);
            assert!(problems[0].reason.contains(property), "{}", problems[0]);
            assert!(!problems[0].reason.contains("canary"), "{}", problems[0]);
        }
    }

    #[test]
    fn a_name_is_refused_without_a_value_if_it_is_barred_or_unknown() {
        for refused in ["sasl.pasword", "plugin.library.paths", "acks", "no\0name"] {
            assert!(refused_by_name(refused).is_some(), "{refused}");
        }
        for taken in ["sasl.password", "linger.ms", "compression.level", "ssl.ca.pem", "debug"] {
            assert_eq!(refused_by_name(taken), None, "{taken}");
        }
    }

    #[test]
    fn secrets_are_known_by_their_names() {
        for secret in [
            "sasl.password",
            "ssl.key.password",
            "ssl.key.pem",
            "ssl.keystore.password",
            "sasl.oauthbearer.client.secret",
            "sasl.oauthbearer.config",
            "sasl.oauthbearer.assertion.private.key.passphrase",
            "sasl.jaas.config",
        ] {
            assert!(is_secret(secret), "{secret}");
        }
        assert!(!is_secret("sasl.username") && !is_secret("compression.level"));
    }
}
