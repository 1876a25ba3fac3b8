//! librdkafka settings that pass through.
//!
//! Which of them are refused, because they would void a promise or run code, is the Kafka adapter's knowledge. Here: secrets
//! from files, and which values may be shown.

use std::collections::BTreeMap;

use outboxd_kafka::KafkaConfig;
use secrecy::{ExposeSecret, SecretString};

use super::raw::{Origin, Typed};
use super::{Problem, Problems, REDACTED, read_secret, shown_path};

/// Settings whose value can be put in a file named by `<setting>.file`.
const FROM_FILE: [&str; 8] = [
    "sasl.password",
    "sasl.oauthbearer.config",
    "sasl.oauthbearer.client.secret",
    "sasl.oauthbearer.assertion.private.key.pem",
    "sasl.oauthbearer.assertion.private.key.passphrase",
    "ssl.key.password",
    "ssl.key.pem",
    "ssl.keystore.password",
];

/// The settings with secrets read from their files. Files are read only if the command needs Kafka.
pub(super) fn resolve(
    typed: &BTreeMap<String, Typed>,
    read_files: bool,
    problems: &mut Problems,
) -> BTreeMap<String, SecretString> {
    let mut settings = BTreeMap::new();
    for (name, value) in typed {
        let from_file = name.strip_suffix(".file").filter(|name| FROM_FILE.contains(name));
        let Some(setting) = from_file else {
            settings.entry(name.clone()).or_insert_with(|| value.text.clone());
            continue;
        };
        let key = format!("kafka.properties.{name}");
        match typed.get(setting) {
            Some(direct) if direct.origin == value.origin => problems.push(Problem {
                key,
                said: format!("{setting} and {name} are both set: set one"),
                origin: value.origin.clone(),
            }),
            Some(direct) if direct.origin > value.origin => {}
            Some(_) | None if !read_files => {}
            Some(_) | None => match read_secret(&key, value.text.expose_secret()) {
                Ok(secret) => {
                    settings.insert(setting.to_owned(), secret);
                }
                Err(said) => problems.push(Problem { key, said, origin: value.origin.clone() }),
            },
        }
    }
    settings
}

/// A setting's value as it may be shown: librdkafka knows the setting, and it is no secret. The path of a secret's file is
/// none, if it is one.
pub(super) fn shown(name: &str, typed: &Typed) -> String {
    let text = typed.text.expose_secret();
    if name.strip_suffix(".file").is_some_and(|name| FROM_FILE.contains(&name)) {
        shown_path(text)
    } else if outboxd_kafka::is_secret(name) {
        REDACTED.to_owned()
    } else {
        text.to_owned()
    }
}

/// What the Kafka adapter refuses by name, because it would void a promise, run code or is unknown (and then perhaps a secret
/// with a slip in its name); and if the command needs Kafka, also the values that librdkafka does not take. A command that does
/// not need it works where the files of certificates are not.
pub(super) fn refuse(
    kafka: &KafkaConfig,
    typed: &BTreeMap<String, Typed>,
    needed: bool,
    problems: &mut Problems,
) {
    let problem = |name: &str, said: String| {
        let origin =
            typed.get(name).or_else(|| typed.get(&format!("{name}.file"))).map(|typed| typed.origin.clone());
        let key = if typed.contains_key(name) {
            format!("kafka.properties.{name}")
        } else {
            format!("kafka.{name}")
        };
        Problem { key, said, origin: origin.unwrap_or(Origin::Default) }
    };
    if needed {
        for found in outboxd_kafka::validate(kafka) {
            let name = found.key.trim_start_matches("properties.").trim_matches('"');
            problems.push(problem(name, found.reason));
        }
    } else {
        for name in kafka.properties.keys() {
            if let Some(reason) = outboxd_kafka::properties::refused_by_name(name) {
                problems.push(problem(name, reason.to_owned()));
            }
        }
    }
}
