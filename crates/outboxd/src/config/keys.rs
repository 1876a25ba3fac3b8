//! Every configuration key: the single source of the parser, `config/outboxd.toml` and `docs/configuration.md`.

/// A configuration key.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Key {
    /// Section and name: `relay.page_messages`.
    pub(crate) name: &'static str,
    /// What it takes.
    pub(crate) kind: Kind,
    /// What holds if nobody sets it.
    pub(crate) default: Default,
    /// What it does, one sentence.
    pub(crate) doc: &'static str,
}

/// What a key takes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    /// A whole number between the two, both included.
    Number(u64, u64),
    /// `true` or `false`.
    Switch,
    /// One of the words.
    Choice(&'static [&'static str]),
    /// The database's URL. A secret.
    DatabaseUrl,
    /// A file that exists.
    File,
    /// The name of a schema.
    Schema,
    /// Kafka brokers.
    Brokers,
    /// The name of this relay.
    Instance,
    /// Where to listen.
    Address,
    /// Where to listen, or not at all.
    AddressOrOff,
    /// What a caller must know. A secret.
    Token,
    /// Host names.
    Hosts,
    /// A log filter.
    Filter,
    /// librdkafka settings.
    Properties,
    /// Patterns of topics.
    Patterns,
    /// A topic.
    Topic,
    /// The beginning of a topic's name.
    Prefix,
    /// Headers under other names.
    Aliases,
}

/// What holds if nobody sets a key.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Default {
    /// This text, as if somebody had written it.
    Text(&'static str),
    /// Nothing: the commands that need it say so.
    Unset,
    /// Found out at start, in these words.
    Computed(&'static str),
}

const KIB: u64 = 1_024;
const GIB: u64 = 1_024 * 1_024 * 1_024;

/// Prefix of every environment variable. Two underscores: a Kubernetes Service called `outboxd` puts `OUTBOXD_PORT` and
/// friends into every pod.
pub(crate) const ENVIRONMENT_PREFIX: &str = "OUTBOXD__";

/// Another name for `log.filter` in the environment, because it is what one types most.
pub(crate) const LOG_FILTER_VARIABLE: &str = "OUTBOXD_LOG";

/// Every key, in the order of the documentation.
pub(crate) const KEYS: &[Key] = &[
    Key {
        name: "database.url",
        kind: Kind::DatabaseUrl,
        default: Default::Unset,
        doc: "The database with the outbox; its form chooses the adapter. A secret if it holds a password.",
    },
    Key {
        name: "database.url_file",
        kind: Kind::File,
        default: Default::Unset,
        doc: "A file that holds `database.url`, so that the password is in no environment and no argument.",
    },
    Key {
        name: "database.schema",
        kind: Kind::Schema,
        default: Default::Text("outbox"),
        doc: "The schema with the outbox's tables (PostgreSQL).",
    },
    Key {
        name: "kafka.bootstrap_servers",
        kind: Kind::Brokers,
        default: Default::Unset,
        doc: "Brokers to begin with, separated by commas.",
    },
    Key {
        name: "kafka.message_max_bytes",
        kind: Kind::Number(1_000, 1_000_000_000),
        default: Default::Text("1048588"),
        doc: "The largest record batch to try; a topic's own limit applies as well where the relay may read it.",
    },
    Key {
        name: "kafka.compression",
        kind: Kind::Choice(&["none", "gzip", "snappy", "lz4", "zstd"]),
        default: Default::Text("lz4"),
        doc: "How record batches are compressed. Consumers need no setting for it.",
    },
    Key {
        name: "kafka.properties",
        kind: Kind::Properties,
        default: Default::Unset,
        doc: "librdkafka settings by their own names: TLS, SASL, linger.ms, compression.level.",
    },
    Key {
        name: "relay.instance",
        kind: Kind::Instance,
        default: Default::Computed("host name, a hyphen, the process id"),
        doc: "The name of this relay in the cursor, receipts, logs and at Kafka.",
    },
    Key {
        name: "relay.page_messages",
        kind: Kind::Number(1, 100_000),
        default: Default::Text("2000"),
        doc: "Most messages in a page.",
    },
    Key {
        name: "relay.page_bytes",
        kind: Kind::Number(KIB, GIB),
        default: Default::Text("4194304"),
        doc: "Most bytes in a page; a single larger message is a page of its own.",
    },
    Key {
        name: "relay.in_flight_messages",
        kind: Kind::Number(1, 1_000_000),
        default: Default::Text("16000"),
        doc: "Most messages between read and settled. It bounds the duplicates of a crash.",
    },
    Key {
        name: "relay.in_flight_bytes",
        kind: Kind::Number(KIB, 16 * GIB),
        default: Default::Text("33554432"),
        doc: "Most bytes between read and settled. It bounds the memory.",
    },
    Key {
        name: "relay.poll_min_ms",
        kind: Kind::Number(1, 1_000),
        default: Default::Text("1"),
        doc: "Pause between two looks at the table while messages come.",
    },
    Key {
        name: "relay.poll_max_ms",
        kind: Kind::Number(1, 60_000),
        default: Default::Text("20"),
        doc: "Pause between two looks at the table while nothing comes. It is the latency of the first message.",
    },
    Key {
        name: "relay.settle_every_ms",
        kind: Kind::Number(1, 10_000),
        default: Default::Text("25"),
        doc: "Pause between two settles; what was acknowledged since the last one is duplicated by a crash.",
    },
    Key {
        name: "relay.attempts_max",
        kind: Kind::Number(1, 1_000),
        default: Default::Text("10"),
        doc: "Attempts charged to a message with an unknown error before it is parked. An outage charges none.",
    },
    Key {
        name: "relay.topics_allowed",
        kind: Kind::Patterns,
        default: Default::Text("*"),
        doc: "The topics that intents may name; a message of any other is parked as topic_not_allowed and not sent.",
    },
    Key {
        name: "relay.outage_after_ms",
        kind: Kind::Number(100, 3_600_000),
        default: Default::Text("30000"),
        doc: "No answer from Kafka for so long is an outage.",
    },
    Key {
        name: "relay.backoff_min_ms",
        kind: Kind::Number(1, 60_000),
        default: Default::Text("100"),
        doc: "First pause after a failure; it doubles, with full jitter.",
    },
    Key {
        name: "relay.backoff_max_ms",
        kind: Kind::Number(1, 600_000),
        default: Default::Text("30000"),
        doc: "Longest pause after a failure.",
    },
    Key {
        name: "relay.standby_poll_ms",
        kind: Kind::Number(10, 60_000),
        default: Default::Text("250"),
        doc: "How often a standby tries to take the lead.",
    },
    Key {
        name: "relay.lead_session_ms",
        kind: Kind::Number(1_000, 600_000),
        default: Default::Text("10000"),
        doc: "A leader that the database has not heard of for so long loses the lead.",
    },
    Key {
        name: "purge.every_ms",
        kind: Kind::Number(10, 86_400_000),
        default: Default::Text("60000"),
        doc: "How often the purge looks for work; while it finds any, its steps follow one another.",
    },
    Key {
        name: "purge.keep_messages_days",
        kind: Kind::Number(0, 36_500),
        default: Default::Text("7"),
        doc: "Dispatched intents older than this are deleted; what is undelivered or held never is.",
    },
    Key {
        name: "purge.keep_receipts_days",
        kind: Kind::Number(0, 36_500),
        default: Default::Text("30"),
        doc: "Receipts older than this are deleted.",
    },
    Key {
        name: "purge.rows",
        kind: Kind::Number(1, 100_000),
        default: Default::Text("1000"),
        doc: "Most rows that one step of the purge deletes.",
    },
    Key {
        name: "sweep.every_ms",
        kind: Kind::Number(10, 86_400_000),
        default: Default::Text("600000"),
        doc: "Between two laps of the sweep, which compares what was dispatched with its receipts.",
    },
    Key {
        name: "sweep.rows",
        kind: Kind::Number(1, 100_000),
        default: Default::Text("20000"),
        doc: "Most messages that one turn of the sweep compares.",
    },
    Key {
        name: "verify.every_s",
        kind: Kind::Number(0, 86_400),
        default: Default::Text("0"),
        doc: "How often the leader looks at a sample of the newest 100,000 messages at Kafka; 0: never. Needs READ on the topics.",
    },
    Key {
        name: "verify.sample",
        kind: Kind::Number(1, 10_000),
        default: Default::Text("100"),
        doc: "Messages of one such look.",
    },
    Key {
        name: "canary.every_s",
        kind: Kind::Number(0, 86_400),
        default: Default::Text("0"),
        doc: "How often the leader emits a message of its own and waits to consume it; 0: never. Needs READ on its topic.",
    },
    Key {
        name: "canary.topic",
        kind: Kind::Topic,
        default: Default::Unset,
        doc: "The topic of these messages, as an intent names it: one of their own, which exists.",
    },
    Key {
        name: "shutdown.grace_ms",
        kind: Kind::Number(0, 3_600_000),
        default: Default::Text("25000"),
        doc: "Time to drain after SIGTERM. Keep it below the orchestrator's own limit.",
    },
    Key {
        name: "http.listen",
        kind: Kind::Address,
        default: Default::Text("127.0.0.1:9464"),
        doc: "Where metrics, probes and status are served. Port 0 takes a free one and logs it.",
    },
    Key {
        name: "admin.listen",
        kind: Kind::AddressOrOff,
        default: Default::Text("127.0.0.1:9465"),
        doc: "Where `GET /trace/{id}` is answered. Other than on a loopback address it needs a token. Port 0 takes a free one and logs it.",
    },
    Key {
        name: "admin.token",
        kind: Kind::Token,
        default: Default::Unset,
        doc: "What a caller must send: `Authorization: Bearer <token>`. A secret.",
    },
    Key {
        name: "admin.token_file",
        kind: Kind::File,
        default: Default::Unset,
        doc: "A file that holds `admin.token`, so that the token is in no environment.",
    },
    Key {
        name: "admin.hosts",
        kind: Kind::Hosts,
        default: Default::Unset,
        doc: "Names by which callers reach the admin listener (their Host header), beside localhost and its own address.",
    },
    Key {
        name: "log.format",
        kind: Kind::Choice(&["auto", "text", "json"]),
        default: Default::Text("auto"),
        doc: "Format of the log; `auto` is text on a terminal and JSON otherwise.",
    },
    Key {
        name: "log.filter",
        kind: Kind::Filter,
        default: Default::Text("info"),
        doc: "What is logged: a level, or levels by target. `OUTBOXD_LOG` is another name for its variable and wins.",
    },
    Key {
        name: "log.keys",
        kind: Kind::Switch,
        default: Default::Text("false"),
        doc: "Whether lines about a message show its key. Keys are often personal data; a short hash is always there.",
    },
];

/// Every key of a `[[route]]`, in the order of the documentation.
pub(crate) const ROUTE_KEYS: &[Key] = &[
    Key {
        name: "route.topics",
        kind: Kind::Patterns,
        default: Default::Unset,
        doc: "The topics, as intents name them, that the route is for. No topic may be matched by two routes.",
    },
    Key {
        name: "route.on_refused",
        kind: Kind::Choice(&["block_key", "skip"]),
        default: Default::Text("block_key"),
        doc: "What a parked message means for later ones of its key: they wait behind it, or go on without it.",
    },
    Key {
        name: "route.dead_letter",
        kind: Kind::Topic,
        default: Default::Unset,
        doc: "The topic that gets a copy of each parked message, by its full name; no prefix is added.",
    },
    Key {
        name: "route.attempts_max",
        kind: Kind::Number(1, 1_000),
        default: Default::Computed("that of relay.attempts_max"),
        doc: "Attempts charged to a message with an unknown error before it is parked.",
    },
    Key {
        name: "route.topic_prefix",
        kind: Kind::Prefix,
        default: Default::Unset,
        doc: "Stands before the intent's topic in the name of the topic at Kafka.",
    },
    Key {
        name: "route.header_aliases",
        kind: Kind::Aliases,
        default: Default::Unset,
        doc: "Headers that the relay stamps, and the name under which each is sent a second time.",
    },
];

impl Key {
    /// The environment variable that sets it.
    pub(crate) fn variable(&self) -> String {
        let name = self.name.to_uppercase().replace('.', "__");
        match self.kind {
            Kind::Properties => format!("{ENVIRONMENT_PREFIX}{name}__<NAME>"),
            Kind::Number(..)
            | Kind::Switch
            | Kind::Choice(_)
            | Kind::DatabaseUrl
            | Kind::File
            | Kind::Schema
            | Kind::Brokers
            | Kind::Instance
            | Kind::Address
            | Kind::AddressOrOff
            | Kind::Token
            | Kind::Hosts
            | Kind::Filter
            | Kind::Patterns
            | Kind::Topic
            | Kind::Prefix
            | Kind::Aliases => format!("{ENVIRONMENT_PREFIX}{name}"),
        }
    }

    /// What it takes, in words that follow "must be".
    pub(crate) fn bounds(&self) -> String {
        match self.kind {
            Kind::Number(min, max) => format!("a whole number from {min} to {max}"),
            Kind::Switch => "true or false".to_owned(),
            Kind::Choice(words) => format!("one of {}", words.join(", ")),
            Kind::DatabaseUrl => "postgres://user@host/database or sqlite:path".to_owned(),
            Kind::File => "a file that can be read and is not empty".to_owned(),
            Kind::Schema => "1 to 63 of a-z 0-9 _, not starting with a digit or pg_".to_owned(),
            Kind::Brokers => "host:port, several separated by commas".to_owned(),
            Kind::Instance => "1 to 128 of a-z A-Z 0-9 . _ : -".to_owned(),
            Kind::Address => "an IP address and a port, as 127.0.0.1:9464".to_owned(),
            Kind::AddressOrOff => "an IP address and a port, as 127.0.0.1:9465, or off".to_owned(),
            Kind::Token => "32 to 1024 visible ASCII characters without spaces".to_owned(),
            Kind::Hosts => "host names without ports, several separated by commas".to_owned(),
            Kind::Filter => {
                "a level (error, warn, info, debug, trace) or target=level, separated by commas".to_owned()
            }
            Kind::Properties => "names and values as librdkafka knows them".to_owned(),
            Kind::Patterns => {
                "topics, several separated by commas; * stands for any run of characters".to_owned()
            }
            Kind::Topic => "1 to 249 of a-z A-Z 0-9 . _ -, not starting with __".to_owned(),
            Kind::Prefix => "of a-z A-Z 0-9 . _ -, not starting with __".to_owned(),
            Kind::Aliases => "a table of header names and their aliases".to_owned(),
        }
    }

    /// The key of a route of that name, without `route.`.
    pub(crate) fn of_route(name: &str) -> Option<&'static Self> {
        ROUTE_KEYS.iter().find(|key| key.name.strip_prefix("route.") == Some(name))
    }

    /// The key of that name.
    pub(crate) fn find(name: &str) -> Option<&'static Self> {
        KEYS.iter().find(|key| key.name == name)
    }
}

/// The key that somebody who typed `name` probably meant.
pub(crate) fn did_you_mean(name: &str) -> Option<&'static str> {
    did_you_mean_in(KEYS, name)
}

/// The same, among these.
pub(crate) fn did_you_mean_in(keys: &[Key], name: &str) -> Option<&'static str> {
    const SIMILAR_ENOUGH: f64 = 0.85;
    keys.iter()
        .map(|key| (strsim::jaro_winkler(name, key.name), key.name))
        .filter(|(similarity, _)| *similarity >= SIMILAR_ENOUGH)
        .max_by(|one, other| one.0.total_cmp(&other.0))
        .map(|(_, name)| name)
}
