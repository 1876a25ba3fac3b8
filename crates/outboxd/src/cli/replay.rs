//! What may be typed about replays.

use clap::{Args, Subcommand};
use outboxd_core::TopicPattern;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use super::{Output, not_blank};

pub(super) const EXAMPLES: &str = "\
Examples:
  outboxd replay start --id 0198c5a4-7a0e-7c9e-b9f1-3d6a0a6f2b11 --reason \"billing lost it\"
  outboxd replay start --topic orders --from 2031-02-03T00:00:00Z --to 2031-02-04T00:00:00Z --dry-run
      says how many messages that would be, and shows some of them
  outboxd replay start --topic orders --from 2031-02-03T00:00:00Z --to 2031-02-04T00:00:00Z \\
      --rate 500 --yes --reason \"billing lost a day\"
  outboxd replay start --topic orders --to-topic orders.backfill --yes --reason \"new search index\"
  outboxd replay show 3 --watch
  outboxd replay pause 3 --reason \"consumers lag\"; outboxd replay resume 3 --reason \"they caught up\"

Only what was dispatched is published again: what waits or is held has yet to be published for the first time. docs/replay.md says what
consumers see.

Exit codes: 0 done, 64 wrong usage, no such message or replay, or many messages without --yes, 69 the database cannot be reached,
70 a bug, 78 configuration or schema.";

/// `replay`.
#[derive(Debug, Subcommand)]
pub(crate) enum Replay {
    /// Ask for messages to be published again
    ///
    /// Every condition must be met. Looks for the messages first, in small steps, and says how many they are. The leader takes a replay up
    /// within seconds, one at a time, the oldest first; it survives restarts and failover.
    Start(ReplayStart),
    /// List replays, newest first
    List {
        /// At most so many; 0 shows all
        #[arg(long, default_value_t = 100)]
        limit: u32,
        /// How to print them.
        #[command(flatten)]
        output: Output,
    },
    /// Show one replay: what it means, who asked and why, and how far it is
    Show {
        /// Number of the replay
        #[arg(value_name = "NUMBER")]
        replay: i64,
        /// Go on showing it until it is over, stopped or paused
        #[arg(long)]
        watch: bool,
        /// How to print it.
        #[command(flatten)]
        output: Output,
    },
    /// Let a replay rest until it is resumed; what is with Kafka already is published
    Pause(ReplayDecision),
    /// Let a replay go on: a paused one, or one that was stopped and whose cause is gone
    Resume {
        /// Leave out the message that it was stopped by. It is counted, and the audit names it
        #[arg(long)]
        skip: bool,
        /// Which, and why.
        #[command(flatten)]
        decision: ReplayDecision,
    },
    /// Give a replay up; what it has published stays published
    Cancel(ReplayDecision),
}

/// `replay start`.
#[derive(Debug, Args)]
pub(crate) struct ReplayStart {
    /// Only messages with this id; may be repeated
    #[arg(long = "id", value_name = "ID", help_heading = "Which messages")]
    pub(crate) ids: Vec<Uuid>,
    /// Only messages with this correlation id
    #[arg(long, value_name = "ID", help_heading = "Which messages")]
    pub(crate) correlation_id: Option<String>,
    /// Only messages whose intent names this topic; * stands for any characters
    #[arg(long, value_name = "PATTERN", help_heading = "Which messages")]
    pub(crate) topic: Option<TopicPattern>,
    /// Only messages with this key, of the topic that --topic names
    #[arg(long, requires = "topic", help_heading = "Which messages")]
    pub(crate) key: Option<String>,
    /// Only messages that were inserted at this time or later, by the database's clock, as 2031-02-03T04:05:06Z
    #[arg(long, value_name = "TIME", value_parser = time, help_heading = "Which messages")]
    pub(crate) from: Option<OffsetDateTime>,
    /// Only messages that were inserted before this time
    #[arg(long, value_name = "TIME", value_parser = time, help_heading = "Which messages")]
    pub(crate) to: Option<OffsetDateTime>,
    /// Send the copies to this topic, by its full name at Kafka, instead of each to its own; the key decides the partition
    #[arg(long, value_name = "TOPIC")]
    pub(crate) to_topic: Option<String>,
    /// Publish at most so many a second [default: all that goes, and 1000 while live messages flow]
    #[arg(long, value_name = "MESSAGES", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) rate: Option<u32>,
    /// Say how many messages are meant and show the first of them; change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Do it although it is more than 1000 messages
    #[arg(long, conflicts_with = "dry_run")]
    pub(crate) yes: bool,
    /// Why, for the audit
    #[arg(long, value_name = "TEXT", value_parser = not_blank, required_unless_present = "dry_run")]
    pub(crate) reason: Option<String>,
    /// Who, for the audit [default: the user of the operating system]
    #[arg(long = "as", value_name = "NAME", value_parser = not_blank)]
    pub(crate) who: Option<String>,
    /// How to print it.
    #[command(flatten)]
    pub(crate) output: Output,
}

/// Which replay, and why.
#[derive(Debug, Args)]
pub(crate) struct ReplayDecision {
    /// Number of the replay
    #[arg(value_name = "NUMBER")]
    pub(crate) replay: i64,
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

fn time(text: &str) -> Result<OffsetDateTime, String> {
    OffsetDateTime::parse(text, &Rfc3339)
        .map_err(|_| "expected a time with its offset, as 2031-02-03T04:05:06Z".to_owned())
}
