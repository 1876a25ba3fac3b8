//! What becomes of a message: one exhaustive function from what happened to what it means.
//!
//! Adapters report a [`Fault`] in these words and decide nothing. An outage is never a message's fault, an error of a
//! batch is never one message's fault until that message was tried alone, and an unknown error is tried again before
//! it is believed.

use crate::held::HoldReason;
use crate::receipts::Receipt;

/// What an adapter saw when a record was not acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// No broker answers, or the connection broke.
    Unreachable,
    /// The client gave up waiting; the record may be in the log.
    TimedOut,
    /// The partition has no leader, too few in-sync replicas, or a broker that shuts down.
    BrokerNotReady,
    /// Credentials or TLS are refused by the cluster.
    Authentication,
    /// The principal may not use the cluster (idempotent write, for example).
    ClusterUnauthorized,
    /// Another producer took this one's place.
    Fenced,
    /// The producer is beyond repair and must be made anew.
    FatalProducer,
    /// The record was thrown out of our own queue.
    Purged,
    /// The topic does not exist.
    TopicUnknown,
    /// The principal may not write to the topic.
    TopicUnauthorized,
    /// A record, or the batch that it travelled in, is too large.
    TooLarge,
    /// A record, or one in its batch, is not acceptable (timestamp, checksum, policy).
    InvalidRecord,
    /// A code that this version does not know.
    Unknown,
}

/// A record that was not acknowledged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code}")]
pub struct DeliveryError {
    /// What it is, in our words.
    pub fault: Fault,
    /// The client's own name for it, without application data.
    pub code: String,
}

/// What becomes of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Acknowledged at this place.
    Dispatched(Receipt),
    /// Nobody's fault: go back to the settled cursor and wait. No attempt is charged.
    Outage,
    /// As [`Verdict::Outage`], and the producer must be made anew first.
    OutageOfProducer,
    /// Not known to be this message's fault: publish it again with nothing else in flight.
    TryAlone,
    /// Set aside and try again later; an attempt is charged.
    Retry,
    /// Set aside all messages of the topic until it can be written to. No attempt is charged.
    HoldTopic(HoldReason),
    /// Set aside until an operator decides.
    Park(HoldReason),
}

/// Says what an unacknowledged record means.
///
/// `alone`: nothing else was in flight with it. `attempts`: how many were charged before this one. `attempts_max`:
/// after how many a message is parked.
#[must_use]
pub fn classify(fault: Fault, alone: bool, attempts: u32, attempts_max: u32) -> Verdict {
    match fault {
        Fault::Unreachable
        | Fault::TimedOut
        | Fault::BrokerNotReady
        | Fault::Authentication
        | Fault::ClusterUnauthorized
        | Fault::Purged => Verdict::Outage,
        Fault::Fenced | Fault::FatalProducer => Verdict::OutageOfProducer,
        Fault::TopicUnknown => Verdict::HoldTopic(HoldReason::TopicUnknown),
        Fault::TopicUnauthorized => Verdict::HoldTopic(HoldReason::TopicUnauthorized),
        Fault::TooLarge if alone => Verdict::Park(HoldReason::TooLarge),
        Fault::InvalidRecord if alone => Verdict::Park(HoldReason::InvalidRecord),
        Fault::Unknown if attempts + 1 < attempts_max => Verdict::Retry,
        Fault::Unknown if alone => Verdict::Park(HoldReason::AttemptsExhausted),
        // A whole batch fails for one of its records.
        Fault::TooLarge | Fault::InvalidRecord | Fault::Unknown => Verdict::TryAlone,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_never_charges_an_attempt_however_often_it_happens() {
        for fault in [
            Fault::Unreachable,
            Fault::TimedOut,
            Fault::BrokerNotReady,
            Fault::Authentication,
            Fault::ClusterUnauthorized,
            Fault::Purged,
        ] {
            for alone in [false, true] {
                assert_eq!(classify(fault, alone, 1_000_000, 3), Verdict::Outage, "{fault:?}");
            }
        }
    }

    #[test]
    fn a_batch_error_is_nobodys_fault_until_it_was_tried_alone() {
        for fault in [Fault::TooLarge, Fault::InvalidRecord] {
            assert_eq!(classify(fault, false, 9, 3), Verdict::TryAlone);
            assert!(matches!(classify(fault, true, 0, 3), Verdict::Park(_)));
        }
    }

    #[test]
    fn an_unknown_error_is_retried_and_then_parked() {
        assert_eq!(classify(Fault::Unknown, false, 0, 3), Verdict::Retry);
        assert_eq!(classify(Fault::Unknown, false, 1, 3), Verdict::Retry);
        assert_eq!(classify(Fault::Unknown, true, 2, 3), Verdict::Park(HoldReason::AttemptsExhausted));
        // The last attempt is its own.
        assert_eq!(classify(Fault::Unknown, false, 0, 1), Verdict::TryAlone);
    }
}
