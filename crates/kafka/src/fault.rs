//! librdkafka's error codes in our own words.

use outboxd_core::{DeliveryError, Fault};
use rdkafka::types::RDKafkaErrorCode as Code;

/// What a code says happened. What it means is decided by [`outboxd_core::classify`].
///
/// The codes are those that a producer can meet, with those of neighbouring requests beside them; what is not listed is
/// [`Fault::Unknown`], which is tried again before it is believed. A code that speaks about the cluster's or the client's
/// set-up and never about one record (a missing feature, a refused compression) counts as the broker not being ready: no
/// message may be parked for it. So does a refused timestamp: every record carries the time of publishing, so what is wrong
/// is a clock, and every message would be refused.
#[must_use]
#[expect(clippy::too_many_lines, reason = "one table, read as a whole")]
pub fn fault_of(code: Code) -> Fault {
    match code {
        Code::BrokerTransportFailure
        | Code::AllBrokersDown
        | Code::Resolve
        | Code::NetworkException
        | Code::BrokerDestroy
        | Code::DestroyBroker
        | Code::UnknownBroker
        | Code::NodeUpdate
        | Code::RebootstrapRequired
        | Code::CriticalSystemResource => Fault::Unreachable,

        Code::MessageTimedOut | Code::OperationTimedOut | Code::RequestTimedOut | Code::TimedOutQueue => {
            Fault::TimedOut
        }

        Code::LeaderNotAvailable
        | Code::NotLeaderForPartition
        | Code::BrokerNotAvailable
        | Code::ReplicaNotAvailable
        | Code::NotEnoughReplicas
        | Code::NotEnoughReplicasAfterAppend
        | Code::ISRInsufficient
        | Code::KafkaStorageError
        | Code::LogDirNotFound
        | Code::CoordinatorLoadInProgress
        | Code::CoordinatorNotAvailable
        | Code::NotCoordinator
        | Code::WaitingForCoordinator
        | Code::NotController
        | Code::StaleControllerEpoch
        | Code::StaleBrokerEpoch
        | Code::FencedLeaderEpoch
        | Code::UnknownLeaderEpoch
        | Code::OffsetNotAvailable
        | Code::PreferredLeaderNotAvailable
        | Code::EligibleLeadersNotAvailable
        | Code::ReassignmentInProgress
        | Code::ListenerNotFound
        | Code::ThrottlingQuotaExceeded
        | Code::InvalidRequiredAcks
        | Code::UnsupportedVersion
        | Code::UnsupportedFeature
        | Code::UnsupportedCompressionType
        | Code::InvalidTimestamp
        | Code::Retry
        | Code::InProgress
        | Code::WaitCache => Fault::BrokerNotReady,

        Code::Authentication
        | Code::SaslAuthenticationFailed
        | Code::UnsupportedSASLMechanism
        | Code::IllegalSASLState
        | Code::UnacceptableCredential
        | Code::PrincipalDeserializationFailure
        | Code::SecurityDisabled
        | Code::DelegationTokenAuthDisabled
        | Code::DelegationTokenNotFound
        | Code::DelegationTokenOwnerMismatch
        | Code::DelegationTokenRequestNotAllowed
        | Code::DelegationTokenAuthorizationFailed
        | Code::DelegationTokenExpired
        | Code::SSL => Fault::Authentication,

        Code::ClusterAuthorizationFailed | Code::TransactionalIdAuthorizationFailed => {
            Fault::ClusterUnauthorized
        }

        Code::Fenced
        | Code::ProducerFenced
        | Code::InvalidProducerEpoch
        | Code::TransactionCoordinatorFenced => Fault::Fenced,

        Code::Fatal
        | Code::GaplessGuarantee
        | Code::Inconsistent
        | Code::OutOfOrderSequenceNumber
        | Code::DuplicateSequenceNumber
        | Code::UnknownProducerId
        | Code::InvalidProducerIdMapping
        | Code::InvalidTransactionalState
        | Code::State => Fault::FatalProducer,

        Code::PurgeQueue | Code::PurgeInflight => Fault::Purged,

        Code::UnknownTopic | Code::UnknownTopicOrPartition | Code::UnknownTopicId => Fault::TopicUnknown,

        Code::TopicAuthorizationFailed => Fault::TopicUnauthorized,

        Code::MessageSizeTooLarge | Code::MessageBatchTooLarge | Code::InvalidMessageSize => Fault::TooLarge,

        Code::InvalidRecord
        | Code::InvalidMessage
        | Code::BadMessage
        | Code::BadCompression
        | Code::InvalidTopic
        | Code::InvalidArgument
        | Code::PolicyViolation
        | Code::UnsupportedForMessageFormat
        | Code::UnknownPartition => Fault::InvalidRecord,

        _ => Fault::Unknown,
    }
}

/// The error of a record, with librdkafka's name for it, and what to do where the name alone does not tell.
pub(crate) fn delivery_error(code: Code) -> DeliveryError {
    let mut text = name_of(code);
    if code == Code::InvalidTimestamp {
        text.push_str(CLOCK_REMEDY);
    }
    DeliveryError { fault: fault_of(code), code: text }
}

const CLOCK_REMEDY: &str = ": the clocks of relay and broker differ by more than the topic's message.timestamp.after.max.ms or \
     message.timestamp.before.max.ms; set the clocks right";

/// librdkafka's name: `MessageSizeTooLarge`.
pub(crate) fn name_of(code: Code) -> String {
    format!("{code:?}")
}

#[cfg(test)]
mod tests {
    use outboxd_core::{Verdict, classify};
    use rdkafka::types::RDKafkaRespErr;

    use super::*;

    #[test]
    fn each_kind_of_answer_has_its_fault() {
        for (code, fault) in [
            (Code::BrokerTransportFailure, Fault::Unreachable),
            (Code::AllBrokersDown, Fault::Unreachable),
            (Code::Resolve, Fault::Unreachable),
            (Code::MessageTimedOut, Fault::TimedOut),
            (Code::RequestTimedOut, Fault::TimedOut),
            (Code::NotEnoughReplicas, Fault::BrokerNotReady),
            (Code::NotEnoughReplicasAfterAppend, Fault::BrokerNotReady),
            (Code::NotLeaderForPartition, Fault::BrokerNotReady),
            (Code::KafkaStorageError, Fault::BrokerNotReady),
            (Code::ThrottlingQuotaExceeded, Fault::BrokerNotReady),
            (Code::Authentication, Fault::Authentication),
            (Code::SaslAuthenticationFailed, Fault::Authentication),
            (Code::SSL, Fault::Authentication),
            (Code::ClusterAuthorizationFailed, Fault::ClusterUnauthorized),
            (Code::Fenced, Fault::Fenced),
            (Code::InvalidProducerEpoch, Fault::Fenced),
            (Code::Fatal, Fault::FatalProducer),
            (Code::OutOfOrderSequenceNumber, Fault::FatalProducer),
            (Code::UnknownProducerId, Fault::FatalProducer),
            (Code::PurgeQueue, Fault::Purged),
            (Code::PurgeInflight, Fault::Purged),
            (Code::UnknownTopic, Fault::TopicUnknown),
            (Code::UnknownTopicOrPartition, Fault::TopicUnknown),
            (Code::TopicAuthorizationFailed, Fault::TopicUnauthorized),
            (Code::MessageSizeTooLarge, Fault::TooLarge),
            (Code::MessageBatchTooLarge, Fault::TooLarge),
            (Code::InvalidRecord, Fault::InvalidRecord),
            (Code::InvalidTimestamp, Fault::BrokerNotReady),
            (Code::PolicyViolation, Fault::InvalidRecord),
            (Code::UnknownPartition, Fault::InvalidRecord),
            (Code::Application, Fault::Unknown),
            (Code::Unknown, Fault::Unknown),
        ] {
            assert_eq!(fault_of(code), fault, "{code:?}");
        }
    }

    #[test]
    fn only_answers_about_a_record_itself_can_park_it_at_once() {
        let about_the_record = [
            Code::MessageSizeTooLarge,
            Code::MessageBatchTooLarge,
            Code::InvalidMessageSize,
            Code::InvalidRecord,
            Code::InvalidMessage,
            Code::BadMessage,
            Code::BadCompression,
            Code::InvalidTopic,
            Code::InvalidArgument,
            Code::PolicyViolation,
            Code::UnsupportedForMessageFormat,
            Code::UnknownPartition,
        ];
        for number in (-199..=-130).chain(-1..=129) {
            let Ok(code) = RDKafkaRespErr::try_from(number).map(Code::from) else { continue };
            let parks = matches!(classify(fault_of(code), true, 0, 10), Verdict::Park(_));
            assert_eq!(parks, about_the_record.contains(&code), "{code:?}");
        }
    }

    #[test]
    fn an_error_carries_librdkafkas_name() {
        assert_eq!(delivery_error(Code::MessageSizeTooLarge).to_string(), "MessageSizeTooLarge");
        let clock = delivery_error(Code::InvalidTimestamp).to_string();
        assert!(
            clock.starts_with("InvalidTimestamp: the clocks") && clock.contains("set the clocks right"),
            "{clock}"
        );
    }
}
