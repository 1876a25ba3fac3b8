//! What a proof of delivery found.

use std::collections::BTreeMap;

use outboxd_core::verify::{Difference, Fingerprint, Missing};
use outboxd_core::{Fault, Seq};
use outboxd_engine::Landing;
use outboxd_kafka::Bounds;
use serde::Serialize;
use time::OffsetDateTime;
use uuid::Uuid;

/// Findings that are listed one by one.
const DETAILS_MAX: usize = 1_000;

/// Kinds of findings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FindingKind {
    /// The log should hold it and does not.
    Lost,
    /// It went before the topic's retention would have it.
    Deleted,
    /// Something else is in its place.
    Different,
    /// A copy that nothing explains.
    UnexpectedCopy,
    /// Its topic does not exist.
    TopicGone,
    /// Its topic may not be read.
    TopicUnreadable,
    /// It was there as long as retention says.
    Expired,
    /// The topic is compacted.
    Compacted,
}

impl FindingKind {
    /// All of them, the worst first.
    pub(crate) const ALL: [Self; 8] = [
        Self::Lost,
        Self::Deleted,
        Self::Different,
        Self::UnexpectedCopy,
        Self::TopicGone,
        Self::TopicUnreadable,
        Self::Expired,
        Self::Compacted,
    ];

    /// The word for it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Lost => "lost",
            Self::Deleted => "deleted",
            Self::Different => "different",
            Self::UnexpectedCopy => "unexpected_copy",
            Self::TopicGone => "topic_gone",
            Self::TopicUnreadable => "topic_unreadable",
            Self::Expired => "expired",
            Self::Compacted => "compacted",
        }
    }

    /// Kafka did as its topic says: not wrong, unless somebody expects everything to be there still.
    pub(crate) fn is_expected(self) -> bool {
        matches!(self, Self::Expired | Self::Compacted)
    }

    fn of(missing: Missing) -> Self {
        match missing {
            Missing::Expired => Self::Expired,
            Missing::Compacted => Self::Compacted,
            Missing::Deleted => Self::Deleted,
            Missing::Lost => Self::Lost,
        }
    }
}

/// One finding.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Detail {
    pub(crate) finding: FindingKind,
    pub(crate) topic: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) partition: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) offset: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) id: Option<Uuid>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) seq: Option<Seq>,
    #[serde(skip_serializing_if = "Option::is_none", with = "time::serde::rfc3339::option")]
    pub(crate) settled_at: Option<OffsetDateTime>,
    /// The replay that made the copy which is not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) replay: Option<i64>,
    /// In what it differs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) difference: Option<Difference>,
    pub(crate) said: String,
}

/// What is known of records that no receipt names.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct CopiesReport {
    /// Copies of messages, by why they are there.
    pub(crate) explained: BTreeMap<&'static str, u64>,
    /// Records of others.
    pub(crate) foreign_records: u64,
    /// Offsets between distant receipts, at which nobody looked.
    pub(crate) offsets_passed_over: u64,
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    /// Messages that were looked at.
    pub(crate) messages: u64,
    /// Those that are where their receipts say, with their id, key and payload.
    pub(crate) verified: u64,
    /// Copies that replays made, and that are where their receipts say.
    pub(crate) verified_replays: u64,
    /// Messages without a receipt: in the backlog, held, scheduled or discarded, or dispatched so long ago that it was purged.
    pub(crate) not_dispatched: u64,
    /// Places at which something is not as it should be, by kind.
    pub(crate) findings: BTreeMap<FindingKind, u64>,
    /// What is known of records that no receipt names; absent where only places that receipts name were looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) copies: Option<CopiesReport>,
    /// The first findings, one by one.
    pub(crate) details: Vec<Detail>,
    /// Findings that are counted and not listed.
    pub(crate) details_left_out: u64,
}

impl Default for Report {
    fn default() -> Self {
        Self {
            messages: 0,
            verified: 0,
            verified_replays: 0,
            not_dispatched: 0,
            findings: FindingKind::ALL.map(|kind| (kind, 0)).into(),
            copies: None,
            details: Vec::new(),
            details_left_out: 0,
        }
    }
}

/// A copy that nothing explains.
pub(super) struct Copy<'a> {
    pub(super) topic: &'a str,
    pub(super) partition: i32,
    pub(super) offset: i64,
    pub(super) id: Uuid,
    pub(super) seq: Seq,
    /// Where the message is.
    pub(super) named: Option<&'a Landing>,
}

impl Report {
    /// How many findings there are; `strict`: with those that Kafka's retention and compaction explain.
    pub(crate) fn wrong(&self, strict: bool) -> u64 {
        self.findings.iter().filter(|(kind, _)| strict || !kind.is_expected()).map(|(_, count)| count).sum()
    }

    pub(super) fn right(&mut self, is_replay: bool) {
        if is_replay {
            self.verified_replays += 1;
        } else {
            self.verified += 1;
        }
    }

    pub(super) fn different(
        &mut self,
        topic: &str,
        difference: Difference,
        print: &Fingerprint,
        landing: &Landing,
    ) {
        let said = match difference {
            Difference::Id => {
                "another record is there: the topic was made anew, or its log was cut off".to_owned()
            }
            Difference::Key | Difference::Payload => {
                format!("the record with its id has another {}", difference.as_str())
            }
        };
        let detail = detail(FindingKind::Different, topic, print, landing, said);
        self.found(1, Detail { difference: Some(difference), ..detail });
    }

    pub(super) fn missing(
        &mut self,
        topic: &str,
        missing: Missing,
        bounds: Bounds,
        print: &Fingerprint,
        landing: &Landing,
    ) {
        let Bounds { start, end } = bounds;
        let said = match missing {
            Missing::Expired => format!("the partition begins at {start} now: retention"),
            Missing::Compacted => "a later record of its key has taken its place: compaction".to_owned(),
            Missing::Deleted => {
                format!(
                    "the partition begins at {start} now, and retention did not do that: records were deleted"
                )
            }
            Missing::Lost if landing.entry.receipt.offset >= end => {
                format!("the partition ends at {end}: the topic was made anew, or its log was cut off")
            }
            Missing::Lost => format!("the partition holds {start} to {end}, without this record"),
        };
        self.found(1, detail(FindingKind::of(missing), topic, print, landing, said));
    }

    /// Nothing of a topic can be read.
    pub(super) fn whole_topic(&mut self, topic: &str, fault: Fault, code: &str, messages: u64) {
        let (finding, said) = if fault == Fault::TopicUnauthorized {
            (FindingKind::TopicUnreadable, "may not be read: grant READ and DESCRIBE on it")
        } else {
            (FindingKind::TopicGone, "does not exist")
        };
        if self.details.iter().any(|of| of.finding == finding && of.topic == topic) {
            // Said once; the count grows.
            *self.findings.entry(finding).or_default() += messages;
            return;
        }
        let said = format!("the topic {said} ({code}); every message that was dispatched to it counts");
        let detail = Detail {
            finding,
            topic: topic.to_owned(),
            partition: None,
            offset: None,
            id: None,
            seq: None,
            settled_at: None,
            replay: None,
            difference: None,
            said,
        };
        self.found(messages, detail);
    }

    pub(super) fn unexpected_copy(&mut self, copy: &Copy<'_>) {
        let named = copy.named.map_or_else(String::new, |landing| {
            let receipt = landing.entry.receipt;
            format!(" beside {}[{}]@{}", landing.entry.topic, receipt.partition, receipt.offset)
        });
        let detail = Detail {
            finding: FindingKind::UnexpectedCopy,
            topic: copy.topic.to_owned(),
            partition: Some(copy.partition),
            offset: Some(copy.offset),
            id: Some(copy.id),
            seq: Some(copy.seq),
            settled_at: copy.named.map(|landing| landing.settled_at),
            replay: None,
            difference: None,
            said: format!(
                "a copy{named} that no replay, crash or outage explains: somebody else published it"
            ),
        };
        self.found(1, detail);
    }

    pub(super) fn copies(&mut self, explained: &BTreeMap<&'static str, u64>, foreign: u64, passed_over: u64) {
        self.copies = Some(CopiesReport {
            explained: explained.clone(),
            foreign_records: foreign,
            offsets_passed_over: passed_over,
        });
    }

    fn found(&mut self, count: u64, detail: Detail) {
        *self.findings.entry(detail.finding).or_default() += count;
        if self.details.len() < DETAILS_MAX {
            self.details.push(detail);
        } else {
            self.details_left_out += 1;
        }
    }
}

fn detail(finding: FindingKind, topic: &str, print: &Fingerprint, landing: &Landing, said: String) -> Detail {
    Detail {
        finding,
        topic: topic.to_owned(),
        partition: Some(landing.entry.receipt.partition),
        offset: Some(landing.entry.receipt.offset),
        id: Some(print.id),
        seq: Some(print.seq),
        settled_at: Some(landing.settled_at),
        replay: landing.replay,
        difference: None,
        said,
    }
}
