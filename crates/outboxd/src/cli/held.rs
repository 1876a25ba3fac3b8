//! What may be typed about held messages.
#![expect(clippy::doc_markdown, reason = "doc comments here are what a terminal shows")]

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use outboxd_core::{HoldReason, HoldState, KeyHash, TopicPattern};
use outboxd_engine::HeldId;

use super::{Output, not_blank};

pub(super) const EXAMPLES: &str = "\
Examples:
  outboxd held list --state parked
  outboxd held show 0198c5a4-7a0e-7c9e-b9f1-3d6a0a6f2b11
      explains why it is held, what waits behind it, and what to do
  outboxd held retry 0198c5a4-7a0e-7c9e-b9f1-3d6a0a6f2b11 --reason \"topic limit raised\"
  outboxd held retry --topic 'orders.*' --held-for too_large --dry-run
      says how many that would be; with --reason instead of --dry-run it is done
  outboxd held discard --topic audit --older-than 30d --reason \"nobody reads them\"
  outboxd held edit 0198c5a4-7a0e-7c9e-b9f1-3d6a0a6f2b11 --topic orders --retry --reason \"was a typing error\"
  outboxd held audit --id 0198c5a4-7a0e-7c9e-b9f1-3d6a0a6f2b11
      who did what to it, and why

Exit codes: 0 done, 64 wrong usage or a message that is not held, 69 the database cannot be reached, 70 a bug,
78 configuration or schema. Of several ids each is tried; what was not done is named.
docs/held.md explains every reason.";

/// `held`.
#[derive(Debug, Subcommand)]
pub(crate) enum Held {
    /// List held messages, oldest first
    ///
    /// States: retry (tried again at its due time), topic (waits for its topic), behind (waits for an earlier message of
    /// its key), parked (waits for you).
    List(HeldList),
    /// Explain one held message: why it is held, the errors, what it waits behind, and what to do; neither its key nor its payload
    Show {
        /// Message id; <id>@<seq> where several have the same id
        id: HeldId,
        /// How to print it.
        #[command(flatten)]
        output: Output,
    },
    /// Publish held messages again now, and after each what waits behind it
    ///
    /// Do this when the cause is gone: the topic's limit was raised, the policy corrected. Name messages by id, or by filters;
    /// with filters, a message that waits behind another one is left to follow it.
    Retry(HeldBulk),
    /// Give held messages up for good; the audit keeps who and why
    ///
    /// Consumers never see them, and the next message of each key is published. The intents stay in the table until they are
    /// purged. Look with --dry-run first.
    Discard(HeldBulk),
    /// Change what is published of a held message: headers, topic, partition, or (if need be) the payload
    ///
    /// The intent itself is never changed; the edit is kept beside it and shown by `held show`. The message stays parked until it is
    /// retried, or say --retry. Another topic is another place in the order: what waited behind the message goes without it.
    Edit(EditArguments),
    /// Show who did what to which message, and why, newest first
    Audit(HeldAudit),
}

/// Which messages are meant, other than by id.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Filters")]
pub(crate) struct Meant {
    /// Only messages for this topic; * stands for any characters
    #[arg(long, value_name = "PATTERN")]
    pub(crate) topic: Option<TopicPattern>,
    /// Only messages with this key, of the topic that --topic names
    #[arg(long, requires = "topic", conflicts_with = "key_hash")]
    pub(crate) key: Option<String>,
    /// Only messages with this hash of topic and key, as `held list --output json` and the log have it
    #[arg(long, value_name = "HASH", value_parser = key_hash)]
    pub(crate) key_hash: Option<KeyHash>,
    /// Only messages in this state: retry, topic, behind, parked
    #[arg(long, value_parser = hold_state)]
    pub(crate) state: Option<HoldState>,
    /// Only messages held for this reason, as too_large or topic_unknown
    #[arg(long, value_name = "REASON", value_parser = hold_reason)]
    pub(crate) held_for: Option<HoldReason>,
    /// Only messages held for at least so long, as 90s, 2h or 3days
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub(crate) older_than: Option<Duration>,
    /// Only messages held for less than so long
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub(crate) younger_than: Option<Duration>,
}

/// `held list`.
#[derive(Debug, Args)]
pub(crate) struct HeldList {
    /// Which.
    #[command(flatten)]
    pub(crate) meant: Meant,
    /// The same as --held-for
    #[arg(long, value_parser = hold_reason, conflicts_with = "held_for")]
    pub(crate) reason: Option<HoldReason>,
    /// At most so many; 0 shows all
    #[arg(long, default_value_t = 100)]
    pub(crate) limit: u32,
    /// How to print them.
    #[command(flatten)]
    pub(crate) output: Output,
}

/// Who acts on which messages, and why.
#[derive(Debug, Args)]
pub(crate) struct HeldBulk {
    /// Message ids; <id>@<seq> where several have the same id
    #[arg(value_name = "ID")]
    pub(crate) ids: Vec<HeldId>,
    /// Which, if not by id.
    #[command(flatten)]
    pub(crate) meant: Meant,
    /// All held messages: what no filter at all means
    #[arg(long)]
    pub(crate) all: bool,
    /// At most so many, the oldest; 0 means all
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    pub(crate) limit: u32,
    /// Say how many messages are meant and show the first of them; change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
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

/// `held edit`.
#[derive(Debug, Args)]
pub(crate) struct EditArguments {
    /// Message ids; <id>@<seq> where several have the same id
    #[arg(value_name = "ID")]
    pub(crate) ids: Vec<HeldId>,
    /// All messages that are parked for this reason, instead of ids
    #[arg(long, value_name = "REASON", value_parser = hold_reason, conflicts_with = "ids")]
    pub(crate) held_for: Option<HoldReason>,
    /// All messages that are held on this topic, instead of ids; * stands for any characters
    #[arg(long, value_name = "PATTERN", conflicts_with = "ids")]
    pub(crate) on_topic: Option<TopicPattern>,
    /// Add a header, or give it another value; may be repeated
    #[arg(long = "header", value_name = "NAME=VALUE", value_parser = super::key_and_value)]
    pub(crate) headers: Vec<(String, String)>,
    /// Take a header away; may be repeated
    #[arg(long, value_name = "NAME")]
    pub(crate) remove_header: Vec<String>,
    /// Publish to this topic instead
    #[arg(long, value_name = "TOPIC")]
    pub(crate) topic: Option<String>,
    /// Publish to this partition
    #[arg(long, value_name = "NUMBER")]
    pub(crate) partition: Option<i32>,
    /// Let the key decide the partition
    #[arg(long, conflicts_with = "partition")]
    pub(crate) no_partition: bool,
    /// Publish the bytes of this file as the payload
    #[arg(long, value_name = "FILE", requires = "yes_change_payload")]
    pub(crate) payload_file: Option<PathBuf>,
    /// Yes: consumers get a payload that the application has not written
    #[arg(long, requires = "payload_file")]
    pub(crate) yes_change_payload: bool,
    /// Publish it now, instead of leaving it parked
    #[arg(long)]
    pub(crate) retry: bool,
    /// Say which messages are meant; change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
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

/// `held audit`.
#[derive(Debug, Args)]
pub(crate) struct HeldAudit {
    /// Only what was done to this message
    #[arg(long)]
    pub(crate) id: Option<uuid::Uuid>,
    /// Only messages of this topic; * stands for any characters
    #[arg(long, value_name = "PATTERN")]
    pub(crate) topic: Option<TopicPattern>,
    /// Only this action
    #[arg(long, value_parser = ["retry", "discard", "edit", "cancel", "sweep"])]
    pub(crate) action: Option<String>,
    /// Only what this person did
    #[arg(long = "as", value_name = "NAME")]
    pub(crate) who: Option<String>,
    /// Only what was done at least so long ago, as 90s, 2h or 3days
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub(crate) older_than: Option<Duration>,
    /// Only what was done less than so long ago
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub(crate) younger_than: Option<Duration>,
    /// At most so many; 0 shows all
    #[arg(long, default_value_t = 100)]
    pub(crate) limit: u32,
    /// How to print it.
    #[command(flatten)]
    pub(crate) output: Output,
}

fn key_hash(text: &str) -> Result<KeyHash, String> {
    let hash = (text.len() == 16).then(|| u64::from_str_radix(text, 16).ok()).flatten();
    hash.map(KeyHash)
        .ok_or_else(|| "expected 16 hex digits, as `held list --output json` shows them".to_owned())
}

fn hold_state(word: &str) -> Result<HoldState, String> {
    HoldState::parse(word).ok_or_else(|| "expected retry, topic, behind or parked".to_owned())
}

fn hold_reason(word: &str) -> Result<HoldReason, String> {
    HoldReason::parse(word)
        .ok_or_else(|| format!("expected one of {}", HoldReason::ALL.map(HoldReason::as_str).join(", ")))
}
