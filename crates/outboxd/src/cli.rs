//! What may be typed: commands, flags and their help.
#![expect(clippy::doc_markdown, reason = "doc comments here are what a terminal shows")]

mod held;

mod verify;

mod replay;

mod trace;

mod trace_indexes;

use std::path::PathBuf;

use crate::config::Sources;
use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use outboxd_core::TopicPattern;
use uuid::Uuid;

pub(crate) use held::{EditArguments, Held, HeldBulk, Meant};
pub(crate) use replay::{Replay, ReplayDecision, ReplayStart};
pub(crate) use trace::{Asked, Trace};
pub(crate) use trace_indexes::TraceIndexesArguments;
pub(crate) use verify::Verify;

const EXAMPLES: &str = "\
Examples:
  outboxd migrate --database-url postgres://owner@localhost/shop
      installs the outbox; `migrate --dry-run` prints the SQL instead
  outboxd check
      says what would keep the relay from its work, and the remedy
  outboxd run
      relays until SIGTERM, with OUTBOXD__DATABASE__URL and OUTBOXD__KAFKA__BOOTSTRAP_SERVERS set
  outboxd held list
      shows what is set aside, and why
  outboxd trace req-8f2e
      says what happened to that request's messages

Exit codes:
  0  done                     69  a dependency cannot be reached (never of `run`)
  64 wrong usage              70  a bug
  65 `verify` has findings    78  configuration: something must be set right first
  After a second SIGTERM or SIGINT `run` ends at once with 128 and the signal's number.

Configuration: defaults < config/outboxd.toml or --config < OUTBOXD__SECTION__KEY < flags.
`outboxd config show` prints what holds. OUTBOXD_LOG sets the log filter; NO_COLOR is respected.";

const CHECK_EXAMPLES: &str = "\
Examples:
  outboxd check
      looks at the topics in use
  outboxd check --topic orders --topic payments
      looks at these as well, before anything is written to them
  outboxd check --output json | jq '.[] | select(.severity != \"ok\")'

Exit codes: 0 nothing keeps the relay from its work (there may be warnings), 64 wrong usage, 69 the database or every
broker is out of reach, 70 a bug, 78 something must be set right first.";

const STATUS_EXAMPLES: &str = "\
Examples:
  outboxd status
  outboxd status --output json | jq .backlog_messages
  outboxd status --output json | jq '.held[] | select(.state == \"parked\") | .messages'

Exit codes: 0 done, 64 wrong usage, 69 the database cannot be reached, 70 a bug, 78 configuration or schema.";

const MIGRATE_EXAMPLES: &str = "\
Examples:
  outboxd migrate
  outboxd migrate --dry-run > outbox.sql
  outboxd migrate --schema orders_outbox
  outboxd migrate grants --writer app --relay relay --reader ops
  outboxd migrate trace-indexes
      what makes `trace` quick; optional
  outboxd migrate --inbox --database-url postgres://owner@localhost/shipping
      installs the inbox in the database of a consumer; it needs no outbox there

Exit codes: 0 done, 64 wrong usage, 69 the database cannot be reached, 70 a bug, 78 configuration, or the database refuses.";

const GRANTS_EXAMPLES: &str = "\
Examples:
  outboxd migrate grants --writer app --relay relay --reader ops
  outboxd migrate grants --relay relay --dry-run
  outboxd migrate grants --consumer shipping --database-url postgres://owner@localhost/shipping
      for the inbox, which may be in another database

Exit codes: 0 done, 64 wrong usage, 69 the database cannot be reached, 70 a bug, 78 configuration, or the database refuses.";

const REBASE_EXAMPLES: &str = "\
Examples:
  outboxd rebase --reason \"restored from the dump of monday\" --dry-run
      explains what it found and what it would do; locks nothing and changes nothing
  outboxd rebase --reason \"staging gets a copy of production\" --yes

Stop every relay of this outbox first. On PostgreSQL it needs the owner of the outbox, and writers wait while it runs.
docs/restore.md says when to run it, and when not.

Exit codes: 0 done (or explained), 64 wrong usage, or neither --yes nor --dry-run, 69 the database cannot be reached, 70 a bug,
78 configuration or schema, a relay that leads, or a role that may not.";

const SCHEDULED_EXAMPLES: &str = "\
Examples:
  outboxd scheduled list --topic reminders --limit 10
  outboxd scheduled cancel 0198c5a4-7a0e-7c9e-b9f1-3d6a0a6f2b11 --reason \"order withdrawn\"

An application takes an intent back in its own transaction: select outbox.cancel(id). Either takes effect if it is committed
before the message's time.

Exit codes: 0 done, 64 wrong usage or a message that is not scheduled, 69 the database cannot be reached, 70 a bug,
78 configuration or schema.";

const CONFIG_EXAMPLES: &str = "\
Examples:
  outboxd config reference > config/outboxd.toml
  outboxd config show --output json | jq '.[] | select(.from != \"default\")'
  outboxd config check --config production.toml

Exit codes: 0 valid, 64 wrong usage, 70 a bug, 78 not valid; everything that is wrong is on standard error.";

/// The transactional outbox relay: publishes committed intents to Kafka, in order per key, losing none
#[derive(Debug, Parser)]
#[command(
    name = "outboxd",
    version,
    after_help = EXAMPLES,
    disable_help_subcommand = true,
    subcommand_required = true,
    arg_required_else_help = true,
    max_term_width = 100
)]
pub(crate) struct Cli {
    /// What holds for every command.
    #[command(flatten)]
    pub(crate) global: Global,
    /// The command.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Flags of every command.
#[derive(Debug, Args)]
#[command(next_help_heading = "Configuration")]
pub(crate) struct Global {
    /// Configuration file [default: config/outboxd.toml if it exists]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// The database with the outbox: postgres://user@host/database or sqlite:path
    ///
    /// Arguments are visible to every user of the machine: put a password in OUTBOXD__DATABASE__URL or in the file that
    /// database.url_file names.
    #[arg(long, global = true, value_name = "URL")]
    pub(crate) database_url: Option<String>,
    /// Kafka brokers to begin with, separated by commas
    #[arg(long, global = true, value_name = "HOST:PORT")]
    pub(crate) bootstrap_servers: Option<String>,
    /// Any configuration key, as relay.poll_max_ms=50; may be repeated
    #[arg(long, global = true, value_name = "KEY=VALUE", value_parser = key_and_value)]
    pub(crate) set: Vec<(String, String)>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Relay committed intents to Kafka until told to stop
    ///
    /// Waits for a database or broker that is down, for hours if need be, and loses nothing. SIGTERM or SIGINT drains:
    /// nothing new is read, what is in flight is awaited and settled, at most for shutdown.grace_ms. A second signal ends at
    /// once, which may cost duplicates and nothing else.
    ///
    /// Any number may run on one outbox: one leads, the others stand by.
    Run,
    /// Install the outbox or bring it up to date; with --inbox, the inbox of consumers
    ///
    /// Safe to repeat and to run from several places at once. Needs a role that may create objects in the database; no
    /// superuser, no extension. The files in migrations/ work with psql and sqlite3 as well.
    #[command(args_conflicts_with_subcommands = true, after_help = MIGRATE_EXAMPLES)]
    Migrate(Migrate),
    /// Say what would keep the relay from its work, each finding with its remedy
    ///
    /// Looks at the server, the schema, grants, the cursor, long transactions, brokers, topics and limits. Changes nothing.
    /// Exit code 78 if anything must be set right, 69 if the database or every broker is out of reach.
    #[command(after_help = CHECK_EXAMPLES)]
    Check(Check),
    /// Show leader, cursor, backlog and held messages
    #[command(after_help = STATUS_EXAMPLES)]
    Status(Output),
    /// Say what happened to a message or a transaction, from the application's commit to the consumer
    ///
    /// ID is recognised: a UUID is a message id, or a correlation id; topic/partition@offset is a record in Kafka; 32 hexadecimal digits, or a
    /// whole traceparent, are a trace id; anything else is an idempotency key or a correlation id. The flags say exactly which it is.
    ///
    /// Prints the timeline of each message, what caused what, where it landed, and of what is undelivered what it waits for. Changes
    /// nothing, and works with the reader's role. Payloads are shown with --payload alone.
    #[command(after_help = trace::EXAMPLES)]
    Trace(Trace),
    /// Look at messages that were set aside, and decide about them
    #[command(subcommand, after_help = held::EXAMPLES)]
    Held(Held),
    /// Make an outbox right that was restored, copied or moved: nothing lost, no history published again
    ///
    /// For a dump that was restored into another cluster, a copy of the database that is to be published to another Kafka, a logical
    /// migration whose sequence was not set, or an outbox that moves to another Kafka cluster. `outboxd check` and a relay that refuses
    /// to start say when it is needed. It keeps what the cursor says of each message, and says it again in the words of this place.
    #[command(after_help = REBASE_EXAMPLES)]
    Rebase(Rebase),

    /// Prove delivery: read Kafka back, and compare each message with the record at the place that its receipt names
    ///
    /// Says what is lost, deleted before its time, different or doubled without a reason. Expired and compacted records are counted and
    /// are no finding. Changes nothing, joins no consumer group; needs the reader's rights at the database and READ on the topics.
    #[command(after_help = verify::EXAMPLES)]
    Verify(Verify),
    /// Publish dispatched messages again, on purpose
    ///
    /// The leader publishes them beside the live ones, in their order, with the header outbox-replay-id. Consumers that keep the ids of what
    /// they have handled change nothing; --to-topic sends the copies elsewhere.
    #[command(subcommand, after_help = replay::EXAMPLES)]
    Replay(Replay),
    /// Look at messages that wait for their time (deliver_after), and take them back
    #[command(subcommand, after_help = SCHEDULED_EXAMPLES)]
    Scheduled(Scheduled),
    /// Watch the relay at work: a shop, a broker, a consumer, and everything that can go wrong; half a minute
    ///
    /// Needs nothing: the outbox is a SQLite file in a temporary directory, the broker runs in this process. With
    /// --database-url and --bootstrap-servers it plays on real servers, in a schema and on topics of its own.
    ///
    /// Exit code 70 if the tally does not add up.
    Demo(Demo),
    /// Show or check the configuration
    #[command(subcommand, after_help = CONFIG_EXAMPLES)]
    Config(ConfigCommand),
    /// Ask the running relay whether it is alive, for images without curl
    ///
    /// Exit code 0 if it is, 69 if it is not or does not answer.
    Healthcheck(Healthcheck),
    /// Print a completion script for a shell
    ///
    /// For bash: outboxd completions bash > /etc/bash_completion.d/outboxd
    Completions {
        /// The shell
        shell: Shell,
    },
}

/// `demo`.
#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// How many orders the shop takes. The in-process broker keeps a few megabytes, hence the limit
    #[arg(long, value_name = "COUNT", default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(20..=10_000))]
    pub(crate) orders: u32,
    /// Which day it is at the shop: the same number gives the same orders
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Leave database, topics and log there to look at
    #[arg(long)]
    pub(crate) keep: bool,
}

/// `migrate`.
#[derive(Debug, Args)]
pub(crate) struct Migrate {
    /// Grant on the outbox, or build indexes, instead.
    #[command(subcommand)]
    pub(crate) command: Option<MigrateCommand>,
    /// Install the inbox instead: the table in which consumers keep the ids of what they have handled
    #[arg(long)]
    pub(crate) inbox: bool,
    /// The schema to install into (PostgreSQL) [default: database.schema; with --inbox: inbox]
    #[arg(long)]
    pub(crate) schema: Option<String>,
    /// Print the SQL that would be executed, and execute nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// How to print what was done.
    #[command(flatten)]
    pub(crate) output: Output,
}

/// Parts of `migrate`.
#[derive(Debug, Subcommand)]
pub(crate) enum MigrateCommand {
    /// Grant each role its part of the outbox, or of the inbox (PostgreSQL); the roles must exist
    ///
    /// Needs the owner of the outbox or of the inbox. No superuser, no CREATEROLE: roles are the administrator's to create.
    #[command(after_help = GRANTS_EXAMPLES)]
    Grants(Grants),
    /// Build the indexes that `trace` uses, or drop them: optional, because every insert pays for each of them
    ///
    /// Needs the owner of the outbox. On PostgreSQL no writer waits: each index is built concurrently, which takes until every transaction
    /// that is open now has ended; what an interrupted build left is found and built anew. On SQLite writes wait while one index is built.
    #[command(after_help = trace_indexes::EXAMPLES)]
    TraceIndexes(TraceIndexesArguments),
}

/// `migrate grants`.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("roles").required(true).multiple(true).args(["writer", "relay", "reader", "consumer"])))]
pub(crate) struct Grants {
    /// May emit intents, and do nothing else
    #[arg(long, value_name = "ROLE")]
    pub(crate) writer: Option<String>,
    /// May relay, and act on held messages
    #[arg(long, value_name = "ROLE")]
    pub(crate) relay: Option<String>,
    /// May look at status and held messages, never at a payload
    #[arg(long, value_name = "ROLE")]
    pub(crate) reader: Option<String>,
    /// May claim messages in the inbox and purge it. Not together with the others: theirs is the outbox
    #[arg(long, value_name = "ROLE", conflicts_with_all = ["writer", "relay", "reader"])]
    pub(crate) consumer: Option<String>,
    /// The schema with the outbox [default: database.schema], or with the inbox [default: inbox]
    #[arg(long)]
    pub(crate) schema: Option<String>,
    /// Print the SQL that would be executed, and execute nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// How to print what was done.
    #[command(flatten)]
    pub(crate) output: Output,
}

/// `check`.
#[derive(Debug, Args)]
pub(crate) struct Check {
    /// A topic to look at, beside those of held messages and of the newest intents; may be repeated
    #[arg(long)]
    pub(crate) topic: Vec<String>,
    /// How to print the findings.
    #[command(flatten)]
    pub(crate) output: Output,
}

/// `scheduled`.
#[derive(Debug, Subcommand)]
pub(crate) enum Scheduled {
    /// List messages that wait for their time, earliest first
    List(ScheduledList),
    /// Take a scheduled message back: it is not delivered; the audit keeps who and why
    Cancel(ScheduledCancel),
}

/// `scheduled list`.
#[derive(Debug, Args)]
pub(crate) struct ScheduledList {
    /// Only the message with this id
    #[arg(long)]
    pub(crate) id: Option<Uuid>,
    /// Only messages for this topic; * stands for any characters
    #[arg(long, value_name = "PATTERN")]
    pub(crate) topic: Option<TopicPattern>,
    /// At most so many; 0 shows all
    #[arg(long, default_value_t = 100)]
    pub(crate) limit: u32,
    /// How to print them.
    #[command(flatten)]
    pub(crate) output: Output,
}

/// `scheduled cancel`.
#[derive(Debug, Args)]
pub(crate) struct ScheduledCancel {
    /// Message id
    pub(crate) id: Uuid,
    /// Why, for the audit
    #[arg(long, value_name = "TEXT", value_parser = not_blank)]
    pub(crate) reason: String,
    /// Who, for the audit [default: the user of the operating system]
    #[arg(long = "as", value_name = "NAME", value_parser = not_blank)]
    pub(crate) who: Option<String>,
    /// How to print it.
    #[command(flatten)]
    pub(crate) output: Output,
}

/// `rebase`.
#[derive(Debug, Args)]
pub(crate) struct Rebase {
    /// Why, for the audit
    #[arg(long, value_name = "TEXT", value_parser = not_blank)]
    pub(crate) reason: String,
    /// Who, for the audit [default: the user of the operating system]
    #[arg(long = "as", value_name = "NAME", value_parser = not_blank)]
    pub(crate) who: Option<String>,
    /// Explain what would be done, and do nothing
    #[arg(long, conflicts_with = "yes")]
    pub(crate) dry_run: bool,
    /// Do it
    #[arg(long)]
    pub(crate) yes: bool,
    /// How to print it.
    #[command(flatten)]
    pub(crate) output: Output,
}

/// `config`.
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Print every key, its value and where it comes from; secrets are redacted
    Show(Output),
    /// Say everything that is wrong, as `run` would; connects to nothing
    Check(Output),
    /// Print a configuration file with every key, its default and its bounds, to begin with
    Reference,
}

/// `healthcheck`.
#[derive(Debug, Args)]
pub(crate) struct Healthcheck {
    /// Ask whether it is ready: configuration and schema are good, it leads or stands by
    #[arg(long)]
    pub(crate) ready: bool,
    /// With --ready: and neither the database nor Kafka is out
    #[arg(long, requires = "ready")]
    pub(crate) strict: bool,
    /// Where it listens [default: http.listen]
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) address: Option<String>,
    /// How long to wait for the answer
    #[arg(long, value_name = "MS", default_value_t = 2_000)]
    pub(crate) timeout_ms: u64,
}

/// How an answer is printed.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Output {
    /// How to print the answer
    #[arg(long, short, value_enum, default_value_t = Format::Table, value_name = "FORMAT")]
    pub(crate) output: Format,
}

/// Forms of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    Table,
    /// For programs
    Json,
}

/// Where the inbox is if nobody says otherwise: not where the configuration says that the outbox is.
const INBOX_SCHEMA: &str = "inbox";

impl Migrate {
    /// The schema that overrides the configured one.
    pub(crate) fn schema_or_default(&self) -> Option<&str> {
        self.schema.as_deref().or(self.inbox.then_some(INBOX_SCHEMA))
    }
}

impl Grants {
    /// The schema that overrides the configured one.
    pub(crate) fn schema_or_default(&self) -> Option<&str> {
        self.schema.as_deref().or(self.consumer.as_ref().map(|_| INBOX_SCHEMA))
    }
}

impl Global {
    /// Where the configuration is looked for. `schema` is the command's own flag for it.
    pub(crate) fn sources(&self, schema: Option<&str>) -> Sources {
        let own = |key: &str, value: Option<&str>| Some((key.to_owned(), value?.to_owned()));
        let mut flags = self.set.clone();
        flags.extend(own("database.url", self.database_url.as_deref()));
        flags.extend(own("kafka.bootstrap_servers", self.bootstrap_servers.as_deref()));
        flags.extend(own("database.schema", schema));
        Sources::of_process(self.config.clone(), flags)
    }
}

fn key_and_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
    Ok((key.trim().to_owned(), value.to_owned()))
}

/// An audit without a name and a reason would answer nobody's question.
fn not_blank(text: &str) -> Result<String, String> {
    let text = text.trim();
    if text.is_empty() {
        Err("must not be blank: the audit keeps it".to_owned())
    } else {
        Ok(text.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn grants_take_any_of_the_roles_and_at_least_one() {
        let parse =
            |roles: &[&str]| Cli::try_parse_from([&["outboxd", "migrate", "grants"], roles].concat()).is_ok();
        assert!(parse(&["--writer", "app", "--relay", "r", "--reader", "ops", "--schema", "s", "--dry-run"]));
        assert!(parse(&["--reader", "ops"]) && parse(&["--consumer", "shipping"]));
        assert!(!parse(&["--reader", "ops", "--consumer", "shipping"]));
        assert!(!parse(&["--dry-run"]) && !parse(&[]));
    }
}
