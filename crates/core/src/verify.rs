//! What a look at Kafka proves of a message: the rules by which a record, or its absence, is judged.
//!
//! Knows what was published as hashes alone, so that whoever proves a delivery needs no payload. What the receipt says decides where
//! to look; routes and prefixes do not matter here.

use std::time::Duration;

use serde::Serialize;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::message::Seq;

/// SHA-256.
pub type Sha256 = [u8; 32];

/// What an intent looks like at Kafka.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fingerprint {
    /// Place in the outbox.
    pub seq: Seq,
    /// Message id.
    pub id: Uuid,
    /// The topic that the intent names.
    pub topic: String,
    /// When it was inserted.
    pub created_at: OffsetDateTime,
    /// Hash of the key's UTF-8; `None`: no key.
    pub key: Option<Sha256>,
    /// Hash of the intent's payload; `None`: a tombstone.
    pub payload: Option<Sha256>,
    /// Hash of the payload that an operator put in its place; `None`: nobody did.
    pub edited: Option<Option<Sha256>>,
}

/// What a record looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its `id` header, if that is a UUID.
    pub id: Option<Uuid>,
    /// Hash of its key.
    pub key: Option<Sha256>,
    /// Hash of its payload.
    pub payload: Option<Sha256>,
}

/// In what a record differs from the message that its receipt names; the first of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Difference {
    /// It is another message's, or nobody's.
    Id,
    /// The same id under another key.
    Key,
    /// The same id with another payload.
    Payload,
}

impl Difference {
    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Id => "id",
            Self::Key => "key",
            Self::Payload => "payload",
        }
    }
}

impl Fingerprint {
    /// Compares with the record at the place that the receipt names.
    ///
    /// The intent's own payload is right also where an edit stands beside it: an edit that came while the message was with Kafka
    /// was in vain.
    ///
    /// # Errors
    /// The first [`Difference`].
    pub fn compare(&self, seen: &Seen) -> Result<(), Difference> {
        if seen.id != Some(self.id) {
            Err(Difference::Id)
        } else if seen.key != self.key {
            Err(Difference::Key)
        } else if seen.payload != self.payload && Some(seen.payload) != self.edited {
            Err(Difference::Payload)
        } else {
            Ok(())
        }
    }
}

/// Why there is no record at a place, as the log itself says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absence {
    /// The place is before the first offset that the partition still has: retention or an administrator deleted it.
    BeforeStart,
    /// It is behind the last record, or in a partition that does not exist: the topic was truncated or made anew.
    BeyondEnd,
    /// Others are before and behind it: compaction removed it, or something that is not Kafka's way.
    Gap,
}

/// What a topic's configuration allows to vanish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Records older than this may go; `None`: however old they are, they stay.
    pub time: Option<Duration>,
    /// They may also go because the partition is large.
    pub by_size: bool,
    /// A later record of a key removes the earlier ones.
    pub compacts: bool,
}

/// What becomes of a message that is not at its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Missing {
    /// It was there as long as the topic's retention says.
    Expired,
    /// The topic is compacted: a later record of its key took its place, or its tombstone went.
    Compacted,
    /// It is gone before the topic's retention would have it: somebody deleted records.
    Deleted,
    /// The log has no such record although it should: truncated, made anew, or damaged.
    Lost,
}

impl Missing {
    /// Judges.
    ///
    /// `age`: how long it has been there. `retention`: `None` if the cluster does not tell; what is gone from the beginning then
    /// counts as expired, because nothing speaks against it.
    #[must_use]
    pub fn of(absence: Absence, age: Duration, retention: Option<Retention>) -> Self {
        match (absence, retention) {
            (Absence::BeyondEnd, _) => Self::Lost,
            (Absence::Gap, Some(Retention { compacts: true, .. })) => Self::Compacted,
            (Absence::Gap, _) => Self::Lost,
            (Absence::BeforeStart, None) => Self::Expired,
            (Absence::BeforeStart, Some(Retention { compacts: true, .. })) => Self::Compacted,
            (Absence::BeforeStart, Some(Retention { by_size: true, .. })) => Self::Expired,
            (Absence::BeforeStart, Some(Retention { time: Some(time), .. })) if age >= time => Self::Expired,
            (Absence::BeforeStart, Some(_)) => Self::Deleted,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fingerprint() -> Fingerprint {
        Fingerprint {
            seq: Seq(1),
            id: Uuid::from_u128(7),
            topic: "orders".into(),
            created_at: OffsetDateTime::UNIX_EPOCH,
            key: Some([1; 32]),
            payload: Some([2; 32]),
            edited: None,
        }
    }

    #[test]
    fn a_record_is_right_if_id_key_and_payload_are() {
        let seen = Seen { id: Some(Uuid::from_u128(7)), key: Some([1; 32]), payload: Some([2; 32]) };
        assert_eq!(fingerprint().compare(&seen), Ok(()));
        assert_eq!(fingerprint().compare(&Seen { id: None, ..seen }), Err(Difference::Id));
        assert_eq!(fingerprint().compare(&Seen { key: None, ..seen }), Err(Difference::Key));
        assert_eq!(fingerprint().compare(&Seen { payload: None, ..seen }), Err(Difference::Payload));
    }

    #[test]
    fn an_edited_payload_is_right_and_so_is_the_intents_own() {
        let edited = Fingerprint { edited: Some(None), ..fingerprint() };
        let seen = Seen { id: Some(Uuid::from_u128(7)), key: Some([1; 32]), payload: None };
        assert_eq!(edited.compare(&seen), Ok(()));
        assert_eq!(edited.compare(&Seen { payload: Some([2; 32]), ..seen }), Ok(()));
        assert_eq!(edited.compare(&Seen { payload: Some([3; 32]), ..seen }), Err(Difference::Payload));
    }

    #[test]
    fn what_retention_allows_to_go_is_no_loss() {
        const HOUR: Duration = Duration::from_secs(3_600);
        let retention = |time, by_size, compacts| Some(Retention { time, by_size, compacts });
        let by_time = retention(Some(HOUR), false, false);
        for (absence, age, retention, missing) in [
            (Absence::BeforeStart, 2 * HOUR, by_time, Missing::Expired),
            (Absence::BeforeStart, HOUR / 2, by_time, Missing::Deleted),
            (Absence::BeforeStart, HOUR / 2, retention(Some(HOUR), true, false), Missing::Expired),
            (Absence::BeforeStart, HOUR / 2, None, Missing::Expired),
            (Absence::BeforeStart, 2 * HOUR, retention(None, false, false), Missing::Deleted),
            (Absence::BeforeStart, HOUR, retention(None, false, true), Missing::Compacted),
            (Absence::Gap, 2 * HOUR, by_time, Missing::Lost),
            (Absence::Gap, HOUR, None, Missing::Lost),
            (Absence::Gap, HOUR, retention(None, false, true), Missing::Compacted),
            (Absence::BeyondEnd, 2 * HOUR, retention(Some(HOUR), true, true), Missing::Lost),
        ] {
            assert_eq!(Missing::of(absence, age, retention), missing, "{absence:?} {age:?} {retention:?}");
        }
    }
}
