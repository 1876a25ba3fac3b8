//! Configuration: what was typed becomes what is valid, or the whole list of what is wrong.
//!
//! Defaults < `config/outboxd.toml` or `--config` < environment < flags. [`RawConfig`] is what was typed, [`Config`] what
//! holds; nothing else in the program reads the environment or a configuration file, and what the database's driver would
//! read (PGUSER and its like) has no say. Unknown keys and values out of range are refused, all at once. Secrets are
//! [`SecretString`]s, and nothing here prints one.

mod keys;

mod raw;

mod database_url;

mod properties;

mod opentelemetry;

mod routes;

mod proof;

mod admin;

mod reference;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use outboxd_engine::{PageLimit, PurgeLimit, RelayConfig};
use outboxd_kafka::{Compression, KafkaConfig};
use outboxd_postgres::schema::SchemaName;
use secrecy::{ExposeSecret, SecretString};

pub(crate) use admin::AdminSection;
pub(crate) use database_url::{Database, REDACTED};
pub(crate) use keys::{KEYS, Key};
pub(crate) use opentelemetry::{Export, Exporting};
pub(crate) use proof::{CanarySection, ProofSection, VerifySection};
pub(crate) use raw::{Origin, RawConfig, Sources};
pub(crate) use reference::toml_file;

use keys::{Default as KeyDefault, Kind};
use raw::Typed;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const QUEUE_SLACK_BYTES: usize = 64 * 1_024;
const QUEUE_MESSAGES_MIN: usize = 1_000;

/// One thing that is wrong.
#[derive(Clone, Debug)]
pub(crate) struct Problem {
    /// The key, or the file, that it is about.
    pub(crate) key: String,
    /// What is wrong, and what would be right. Holds no secret.
    pub(crate) said: String,
    /// Who said it.
    pub(crate) origin: Origin,
}

impl Problem {
    fn general(said: &str) -> Self {
        Self { key: "configuration".to_owned(), said: said.to_owned(), origin: Origin::Default }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.said)?;
        match &self.origin {
            Origin::Default => Ok(()),
            Origin::File(path) if self.key == path.display().to_string() => Ok(()),
            Origin::File(_) | Origin::Environment | Origin::Flag => write!(f, " ({})", self.origin),
        }
    }
}

/// Everything that is wrong.
#[derive(Debug, Default)]
pub(crate) struct Problems(Vec<Problem>);

impl Problems {
    fn push(&mut self, problem: Problem) {
        self.0.push(problem);
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.0.len();
        write!(f, "the configuration has {count} problem{}", if count == 1 { "" } else { "s" })?;
        self.0.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

impl std::error::Error for Problems {}

/// What a command cannot do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Needs {
    /// `database.url` or `database.url_file`, and that file.
    pub(crate) database: bool,
    /// `kafka.bootstrap_servers`.
    pub(crate) kafka: bool,
    /// What protects the listeners.
    pub(crate) listeners: bool,
}

impl Needs {
    /// The relay and its preflight.
    pub(crate) const ALL: Self = Self { listeners: true, ..Self::BOTH };
    /// Commands that look at both sides.
    pub(crate) const BOTH: Self = Self { database: true, kafka: true, listeners: false };
    /// Commands that look at the outbox.
    pub(crate) const DATABASE: Self = Self { database: true, kafka: false, listeners: false };
    /// Commands that look at nothing.
    pub(crate) const NOTHING: Self = Self { database: false, kafka: false, listeners: false };
}

/// How the log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LogFormat {
    /// Text on a terminal, JSON otherwise.
    Auto,
    /// Text.
    Text,
    /// One JSON object a line.
    Json,
}

/// The log.
#[derive(Clone, Debug)]
pub(crate) struct LogSection {
    /// Format.
    pub(crate) format: LogFormat,
    /// Filter.
    pub(crate) filter: String,
    /// Whether a terminal gets colour.
    pub(crate) color: bool,
}

/// A valid configuration.
#[derive(Debug)]
pub(crate) struct Config {
    /// The database, if the command needs one or one is configured.
    pub(crate) database: Option<Database>,
    /// Schema of the outbox.
    pub(crate) schema: SchemaName,
    /// Kafka, as its adapter wants it; its brokers are empty if none are configured and none were needed.
    pub(crate) kafka: KafkaConfig,
    /// Name of this relay.
    pub(crate) instance: String,
    /// A leader that the database has not heard of for so long loses the lead.
    pub(crate) lead_session: Duration,
    /// The loop.
    pub(crate) relay: RelayConfig,
    /// What the leader proves while it relays.
    pub(crate) proof: ProofSection,
    /// Where to serve HTTP.
    pub(crate) listen: SocketAddr,
    /// The admin listener; `None` if it is off.
    pub(crate) admin: Option<AdminSection>,
    /// The log.
    pub(crate) log: LogSection,
    /// Whether spans are exported.
    pub(crate) export: Export,
    /// Where the process ends, in crash tests.
    #[cfg(feature = "failpoints")]
    pub(crate) failpoint: Option<crate::failpoint::Failpoint>,
    /// Each key as it may be shown, with where it came from, in the order of [`KEYS`].
    pub(crate) shown: Vec<Shown>,
}

/// A key as it may be shown.
#[derive(Clone, Debug, serde::Serialize)]
pub(crate) struct Shown {
    /// Its name.
    pub(crate) key: String,
    /// Its value, redacted if it is a secret; `None` if it is not set.
    pub(crate) value: Option<String>,
    /// Where it came from.
    pub(crate) from: String,
}

impl Config {
    /// Reads and validates.
    ///
    /// # Errors
    /// Everything that is wrong, at once.
    pub(crate) fn load(sources: &Sources, needs: Needs) -> Result<Self, Problems> {
        let raw = RawConfig::read(sources);
        #[cfg(feature = "failpoints")]
        let raw = raw.with_failpoint(sources);
        let mut config = Self::validate(raw, needs)?;
        config.log.color = sources.color();
        config.export = Export::of(&sources.environment);
        Ok(config)
    }

    fn validate(raw: RawConfig, needs: Needs) -> Result<Self, Problems> {
        let mut check = Check { values: raw.values, problems: raw.problems };
        check.unknown_keys();
        let page_messages = check.number("relay.page_messages");
        let page_bytes = check.number("relay.page_bytes");
        let in_flight_messages = check.number("relay.in_flight_messages");
        let in_flight_bytes = check.number("relay.in_flight_bytes");
        check.not_above("relay.page_messages", page_messages, "relay.in_flight_messages", in_flight_messages);
        check.not_above("relay.page_bytes", page_bytes, "relay.in_flight_bytes", in_flight_bytes);
        let (poll_min, poll_max) = check.range_ms("relay.poll_min_ms", "relay.poll_max_ms");
        let (backoff_min, backoff_max) = check.range_ms("relay.backoff_min_ms", "relay.backoff_max_ms");
        let relay = RelayConfig {
            page: PageLimit { messages: clamp_u32(page_messages), bytes: page_bytes },
            in_flight_messages: clamp_usize(in_flight_messages),
            in_flight_bytes: clamp_usize(in_flight_bytes),
            poll_min,
            poll_max,
            settle_every: check.millis("relay.settle_every_ms"),
            attempts_max: clamp_u32(check.number("relay.attempts_max")),
            routes: routes::of(&mut check, &raw.routes),
            outage_after: check.millis("relay.outage_after_ms"),
            backoff_min,
            backoff_max,
            standby_poll: check.millis("relay.standby_poll_ms"),
            purge_every: check.millis("purge.every_ms"),
            purge: PurgeLimit {
                keep_messages: check.days("purge.keep_messages_days"),
                keep_receipts: check.days("purge.keep_receipts_days"),
                rows: clamp_u32(check.number("purge.rows")),
            },
            sweep_every: check.millis("sweep.every_ms"),
            sweep_rows: clamp_u32(check.number("sweep.rows")),
            grace: check.millis("shutdown.grace_ms"),
            log_keys: check.parsed("log.keys", |text| text.parse().ok()).unwrap_or_default(),
            ..RelayConfig::default()
        };
        let instance = check.text("relay.instance", instance_is_legal).unwrap_or_else(default_instance);
        let proof = proof::of(&mut check, &relay.routes);
        let mut config = Self {
            database: check.database(needs.database, &raw.driver_variables),
            schema: check.parsed("database.schema", |text| text.parse().ok()).unwrap_or_default(),
            kafka: check.kafka(&raw.properties, needs.kafka, &instance, &relay),
            instance,
            lead_session: check.millis("relay.lead_session_ms"),
            proof,
            relay,
            listen: check.address("http.listen"),
            admin: check.admin(needs),
            log: LogSection {
                format: check.log_format(),
                filter: check.text("log.filter", filter_is_legal).unwrap_or_default(),
                color: false,
            },
            export: Export::Off,
            #[cfg(feature = "failpoints")]
            failpoint: raw.failpoint,
            shown: Vec::new(),
        };
        if check.problems.0.is_empty() {
            config.shown = shown(&check.values, &raw.properties, &config);
            config.shown.extend((1..).zip(&raw.routes).flat_map(|(number, route)| route.shown(number)));
            Ok(config)
        } else {
            Err(check.problems)
        }
    }
}

/// Reads values by key and collects what is wrong with them.
struct Check {
    values: BTreeMap<String, Typed>,
    problems: Problems,
}

impl Check {
    fn unknown_keys(&mut self) {
        for (name, typed) in &self.values {
            if Key::find(name).is_some_and(|key| !matches!(key.kind, Kind::Properties)) {
                continue;
            }
            let said = if Key::find(name).is_some() {
                format!("is a table: set {name}.<name>, as {name}.linger.ms")
            } else {
                let hint = keys::did_you_mean(name)
                    .map_or_else(String::new, |similar| format!("; did you mean {similar}?"));
                format!("unknown key{hint}")
            };
            self.problems.push(Problem { key: name.clone(), said, origin: typed.origin.clone() });
        }
    }

    /// The text of a key, typed or by default.
    fn get(&self, name: &str) -> Option<(String, Origin)> {
        if let Some(typed) = self.values.get(name) {
            return Some((typed.text.expose_secret().to_owned(), typed.origin.clone()));
        }
        match Key::find(name)?.default {
            KeyDefault::Text(text) => Some((text.to_owned(), Origin::Default)),
            KeyDefault::Unset | KeyDefault::Computed(_) => None,
        }
    }

    fn out_of_range(&mut self, name: &str, value: &str, origin: Origin) {
        let bounds = Key::find(name).map_or_else(String::new, Key::bounds);
        self.problems.push(Problem {
            key: name.to_owned(),
            said: format!("{value:?} must be {bounds}"),
            origin,
        });
    }

    fn parsed<T>(&mut self, name: &str, parse: impl FnOnce(&str) -> Option<T>) -> Option<T> {
        let (text, origin) = self.get(name)?;
        let parsed = parse(text.trim());
        if parsed.is_none() {
            self.out_of_range(name, &text, origin);
        }
        parsed
    }

    fn number(&mut self, name: &str) -> u64 {
        let bounds = match Key::find(name).map(|key| key.kind) {
            Some(Kind::Number(min, max)) => min..=max,
            _other => 0..=u64::MAX,
        };
        let least = *bounds.start();
        self.parsed(name, |text| text.parse().ok().filter(|number| bounds.contains(number))).unwrap_or(least)
    }

    fn millis(&mut self, name: &str) -> Duration {
        Duration::from_millis(self.number(name))
    }

    fn days(&mut self, name: &str) -> Duration {
        DAY * clamp_u32(self.number(name))
    }

    fn not_above(&mut self, small: &str, small_value: u64, large: &str, large_value: u64) {
        if small_value > large_value && !self.complained_about(small) && !self.complained_about(large) {
            let origin = self.get(small).map_or(Origin::Default, |(_, origin)| origin);
            self.problems.push(Problem {
                key: small.to_owned(),
                said: format!("{small_value} must not be above {large}, which is {large_value}"),
                origin,
            });
        }
    }

    fn complained_about(&self, name: &str) -> bool {
        self.problems.0.iter().any(|problem| problem.key == name)
    }

    fn range_ms(&mut self, min: &str, max: &str) -> (Duration, Duration) {
        let (least, most) = (self.number(min), self.number(max));
        self.not_above(min, least, max, most);
        (Duration::from_millis(least), Duration::from_millis(most))
    }

    fn text(&mut self, name: &str, legal: impl FnOnce(&str) -> bool) -> Option<String> {
        self.parsed(name, |text| legal(text).then(|| text.to_owned()))
    }

    fn address(&mut self, name: &str) -> SocketAddr {
        self.parsed(name, |text| text.parse().ok()).unwrap_or_else(default_address)
    }

    fn log_format(&mut self) -> LogFormat {
        self.parsed("log.format", |text| match text {
            "auto" => Some(LogFormat::Auto),
            "text" => Some(LogFormat::Text),
            "json" => Some(LogFormat::Json),
            _other => None,
        })
        .unwrap_or(LogFormat::Auto)
    }

    fn kafka(
        &mut self,
        typed: &BTreeMap<String, Typed>,
        needed: bool,
        instance: &str,
        relay: &RelayConfig,
    ) -> KafkaConfig {
        let brokers = self.text("kafka.bootstrap_servers", brokers_are_legal);
        if brokers.is_none() && needed && !self.complained_about("kafka.bootstrap_servers") {
            self.missing("kafka.bootstrap_servers", "--bootstrap-servers");
        }
        let message_max_bytes = clamp_usize(self.number("kafka.message_max_bytes"));
        let settings = properties::resolve(typed, needed, &mut self.problems);
        let mut kafka = KafkaConfig {
            client_id: instance.to_owned(),
            properties: settings
                .into_iter()
                .map(|(name, value)| (name, value.expose_secret().to_owned()))
                .collect(),
            compression: self.parsed("kafka.compression", Compression::parse).unwrap_or_default(),
            message_max_bytes,
            // Everything in flight fits, so a full queue is never what a message waits for; and one record always does.
            queue_bytes: relay
                .in_flight_bytes
                .saturating_add(message_max_bytes)
                .saturating_add(QUEUE_SLACK_BYTES),
            queue_messages: relay.in_flight_messages.max(QUEUE_MESSAGES_MIN),
            // Settings are judged even if brokers are missing: everything that is wrong is said at once.
            ..KafkaConfig::new(brokers.as_deref().unwrap_or("localhost:9092"))
        };
        properties::refuse(&kafka, typed, needed, &mut self.problems);
        kafka.bootstrap_servers = brokers.unwrap_or_default();
        kafka
    }

    fn missing(&mut self, name: &str, flag: &str) {
        let variable = Key::find(name).map_or_else(String::new, Key::variable);
        self.problems.push(Problem {
            key: name.to_owned(),
            said: format!("is not set: set {variable}, or {name} in a file, or {flag}"),
            origin: Origin::Default,
        });
    }

    /// The later of a key and of the one that names a file which holds the same, and which of the two it was. The file is read only if the
    /// command needs it.
    fn text_or_file(
        &mut self,
        name: &'static str,
        file_name: &'static str,
        needed: bool,
    ) -> Option<(SecretString, &'static str, Origin)> {
        match (self.get(name), self.get(file_name)) {
            (Some((_, text)), Some((_, file))) if text == file => {
                self.problems.push(Problem {
                    key: name.to_owned(),
                    said: format!("{name} and {file_name} are both set: set one"),
                    origin: text,
                });
                None
            }
            (Some((text, origin)), file) if file.as_ref().is_none_or(|(_, file)| *file < origin) => {
                Some((SecretString::from(text), name, origin))
            }
            (_, Some(_)) if !needed => None,
            (_, Some((path, origin))) => match read_secret(file_name, &path) {
                Ok(text) => Some((text, file_name, origin)),
                Err(said) => {
                    self.problems.push(Problem { key: file_name.to_owned(), said, origin });
                    None
                }
            },
            (_, None) => None,
        }
    }

    fn database(&mut self, needed: bool, driver_variables: &[&str]) -> Option<Database> {
        let Some((text, key, origin)) = self.text_or_file("database.url", "database.url_file", needed) else {
            let is_set = self.get("database.url").or_else(|| self.get("database.url_file")).is_some();
            if needed && !is_set {
                self.missing("database.url", "--database-url");
            }
            return None;
        };
        match Database::parse(text.expose_secret().trim()) {
            Ok(database) => {
                // A command that connects to nothing works where the certificates are not.
                let problems = if needed { database.tls_problems(driver_variables) } else { Vec::new() };
                for said in problems {
                    self.problems.push(Problem { key: key.to_owned(), said, origin: origin.clone() });
                }
                Some(database)
            }
            Err(said) => {
                self.problems.push(Problem { key: key.to_owned(), said, origin });
                None
            }
        }
    }
}

/// Reads the file that `key` names, which holds one secret; the line end after it is not part of it.
fn read_secret(key: &str, path: &str) -> Result<SecretString, String> {
    let shown = shown_path(path);
    let text = std::fs::read_to_string(path).map_err(|error| {
        let hint = if shown == REDACTED {
            format!("; {key} takes the path of a file, not the secret")
        } else {
            String::new()
        };
        format!("{shown} cannot be read: {error}{hint}")
    })?;
    let secret = text.trim_end_matches(['\r', '\n']);
    if secret.is_empty() {
        return Err(format!("{shown} is empty"));
    }
    Ok(SecretString::from(secret))
}

/// The path of a secret's file as it may be shown. What is no file may be the secret itself, in the wrong place.
fn shown_path(path: &str) -> String {
    if !path.contains("://") && Path::new(path).exists() { path.to_owned() } else { REDACTED.to_owned() }
}

fn shown(
    values: &BTreeMap<String, Typed>,
    properties: &BTreeMap<String, Typed>,
    config: &Config,
) -> Vec<Shown> {
    let mut shown = Vec::new();
    for key in KEYS {
        if matches!(key.kind, Kind::Properties) {
            shown.extend(properties.iter().map(|(name, typed)| Shown {
                key: format!("{}.{name}", key.name),
                value: Some(properties::shown(name, typed)),
                from: typed.origin.to_string(),
            }));
            continue;
        }
        let typed = values.get(key.name);
        let value = match (key.kind, typed, key.default) {
            (Kind::DatabaseUrl, Some(typed), _) => Some(
                Database::parse(typed.text.expose_secret())
                    .map_or_else(|_| REDACTED.to_owned(), |database| database.shown()),
            ),
            (Kind::Token, Some(_), _) => Some(REDACTED.to_owned()),
            (Kind::File, Some(typed), _) => Some(shown_path(typed.text.expose_secret())),
            (Kind::Instance, None, _) => Some(config.instance.clone()),
            (_, Some(typed), _) => Some(typed.text.expose_secret().to_owned()),
            (_, None, KeyDefault::Text(text)) => Some(text.to_owned()),
            (_, None, KeyDefault::Unset | KeyDefault::Computed(_)) => None,
        };
        let from = typed.map_or(&Origin::Default, |typed| &typed.origin).to_string();
        shown.push(Shown { key: key.name.to_owned(), value, from });
    }
    shown
}

/// Stands in for an address that was refused.
fn default_address() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

fn instance_is_legal(name: &str) -> bool {
    (1..=128).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b':' | b'-'))
}

fn brokers_are_legal(list: &str) -> bool {
    list.split(',').map(str::trim).all(|broker| {
        broker.rsplit_once(':').is_some_and(|(host, port)| {
            !host.is_empty()
                && !host.contains(|c: char| c.is_whitespace())
                && port.parse::<u16>().is_ok_and(|port| port > 0)
        })
    })
}

fn filter_is_legal(filter: &str) -> bool {
    tracing_subscriber::EnvFilter::builder().parse(filter).is_ok()
}

/// Host name and process id, in the characters that an instance may have.
fn default_instance() -> String {
    let host = nix::unistd::gethostname().ok().and_then(|host| host.into_string().ok()).unwrap_or_default();
    let host: String = host
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '.' | '-') { c } else { '-' })
        .take(100)
        .collect();
    let host = if host.is_empty() { "outboxd" } else { &host };
    format!("{host}-{}", std::process::id())
}

/// Bounds of [`KEYS`] keep numbers far below; a 32-bit machine keeps what it can address.
fn clamp_u32(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn clamp_usize(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests;
