//! What may be typed to prove delivery.
#![expect(clippy::doc_markdown, reason = "doc comments here are what a terminal shows")]

use std::time::Duration;

use clap::Args;
use outboxd_core::TopicPattern;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::Output;
use crate::verify::Sample;

pub(super) const EXAMPLES: &str = "\
Examples:
  outboxd verify
      every message that is retained, and every copy between them
  outboxd verify --from 24h --topic 'orders.*'
  outboxd verify --from 2031-02-03T00:00:00Z --to 2031-02-04T00:00:00Z --output json | jq .findings
  outboxd verify --sample 1000
      about a thousand messages, anywhere in the table; --sample 1% is one in a hundred
  outboxd verify --rate 5000
      at most so many messages a second, beside a busy cluster

Exit codes: 0 everything is where its receipt says, 64 wrong usage, 65 something is not, 69 the database or every broker is out of
reach, 70 a bug, 78 configuration or schema. docs/verify.md says what each finding means and what to do.";

/// `verify`.
#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// Messages inserted at or after this time, RFC 3339 or so long ago, as 2h or 3days [default: all that are retained]
    #[arg(long, value_name = "TIME", value_parser = since)]
    pub(crate) from: Option<Since>,
    /// Messages inserted before this time
    #[arg(long, value_name = "TIME", value_parser = since)]
    pub(crate) to: Option<Since>,
    /// Only messages for this topic, as their intents name it; * stands for any characters
    #[arg(long, value_name = "PATTERN")]
    pub(crate) topic: Option<TopicPattern>,
    /// Look at about so many of them, or at this part, as 1% or 0.01. Copies are looked for only without it
    #[arg(long, value_name = "NUMBER", value_parser = sample)]
    pub(crate) sample: Option<Sample>,
    /// Which sample: the same number takes the same places [default: another one each time]
    #[arg(long, requires = "sample")]
    pub(crate) seed: Option<u64>,
    /// At most so many messages a second
    #[arg(long, value_name = "MESSAGES", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) rate: Option<u64>,
    /// Count what expired or was compacted as findings too
    #[arg(long)]
    pub(crate) strict: bool,
    /// How to print the report.
    #[command(flatten)]
    pub(crate) output: Output,
}

/// A time, or how long ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Since {
    /// This time.
    At(OffsetDateTime),
    /// So long before now.
    Ago(Duration),
}

impl Since {
    /// The time, if it is `now`.
    pub(crate) fn at(self, now: OffsetDateTime) -> OffsetDateTime {
        match self {
            Self::At(at) => at,
            Self::Ago(ago) => now.saturating_sub(ago.try_into().unwrap_or(time::Duration::MAX)),
        }
    }
}

fn since(text: &str) -> Result<Since, String> {
    if let Ok(at) = OffsetDateTime::parse(text, &Rfc3339) {
        return Ok(Since::At(at));
    }
    let ago = humantime::parse_duration(text);
    ago.map(Since::Ago)
        .map_err(|_| "expected a time as 2031-02-03T04:05:06Z, or how long ago, as 2h".to_owned())
}

fn sample(text: &str) -> Result<Sample, String> {
    let wrong = || "expected a number of messages, or a part of them as 1% or 0.01".to_owned();
    if let Ok(messages) = text.parse::<u64>() {
        return if (1..=1_000_000).contains(&messages) {
            Ok(Sample::Messages(messages))
        } else {
            Err("expected 1 to 1000000 messages, or a part of them as 1%".to_owned())
        };
    }
    let fraction = match text.strip_suffix('%') {
        Some(percent) => percent.trim().parse::<f64>().map_err(|_| wrong())? / 100.0,
        None => text.parse::<f64>().map_err(|_| wrong())?,
    };
    if fraction > 0.0 && fraction <= 1.0 { Ok(Sample::Fraction(fraction)) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_a_number_a_part_or_a_percentage() {
        assert_eq!(sample("1000"), Ok(Sample::Messages(1_000)));
        assert_eq!(sample("1%"), Ok(Sample::Fraction(0.01)));
        assert_eq!(sample("0.5"), Ok(Sample::Fraction(0.5)));
        for wrong in ["0", "-1", "1.5", "101%", "x", "NaN"] {
            assert!(sample(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_time_is_itself_or_so_long_ago() {
        let now = OffsetDateTime::UNIX_EPOCH + Duration::from_secs(10_000);
        assert_eq!(since("2h").unwrap().at(now), now - Duration::from_secs(7_200));
        assert_eq!(since("1970-01-01T00:00:00Z").unwrap().at(now), OffsetDateTime::UNIX_EPOCH);
        assert!(since("yesterday").is_err());
    }
}
