//! What a topic's configuration allows to vanish.

use std::time::Duration;

use outboxd_core::verify::Retention;
use rdkafka::admin::ConfigResource;
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaErrorCode;

use crate::config::KafkaConfig;
use crate::connection::Connection;
use crate::fault::name_of;
use crate::inspect::describe;
use crate::properties::creation_reason;
use crate::reader::ReadError;

/// What may vanish from a topic; `None` if the cluster does not tell (no `DESCRIBE_CONFIGS`).
///
/// # Errors
/// [`ReadError::Read`] if there is no answer now: it says nothing about the topic.
pub async fn retention(config: &KafkaConfig, topic: &str) -> Result<Option<Retention>, ReadError> {
    let answer = match describe(config, Connection::silent(), &[topic]).await {
        Ok(described) => described.into_iter().next().transpose(),
        Err(KafkaError::AdminOp(code)) => Err(code),
        Err(error) => return Err(ReadError::Client(creation_reason(&error))),
    };
    told(answer)
        .map_err(|code| ReadError::Read(format!("the configuration of topic {topic}: {}", name_of(code))))
}

/// A refusal is an answer: asking again would change nothing.
fn told(
    answer: Result<Option<ConfigResource>, RDKafkaErrorCode>,
) -> Result<Option<Retention>, RDKafkaErrorCode> {
    match answer {
        Ok(resource) => Ok(resource.as_ref().and_then(allowed)),
        Err(
            RDKafkaErrorCode::TopicAuthorizationFailed
            | RDKafkaErrorCode::ClusterAuthorizationFailed
            | RDKafkaErrorCode::UnsupportedFeature
            | RDKafkaErrorCode::UnsupportedVersion,
        ) => Ok(None),
        Err(code) => Err(code),
    }
}

fn allowed(resource: &ConfigResource) -> Option<Retention> {
    let setting = |name: &str| resource.get(name)?.value.clone();
    let policy = setting("cleanup.policy")?;
    if !policy.contains("delete") {
        return Some(Retention { time: None, by_size: false, compacts: policy.contains("compact") });
    }
    // Kafka's word for "without a limit" is -1.
    let time = setting("retention.ms")?.parse().ok().map(Duration::from_millis);
    let by_size = setting("retention.bytes").is_some_and(|bytes| bytes.parse::<u64>().is_ok());
    Some(Retention { time, by_size, compacts: policy.contains("compact") })
}

#[cfg(test)]
mod tests {
    use rdkafka::admin::{ConfigEntry, ConfigSource, OwnedResourceSpecifier};

    use super::*;

    fn topic(settings: &[(&str, &str)]) -> ConfigResource {
        let entry = |(name, value): &(&str, &str)| ConfigEntry {
            name: (*name).to_owned(),
            value: Some((*value).to_owned()),
            source: ConfigSource::Default,
            is_read_only: false,
            is_default: true,
            is_sensitive: false,
        };
        ConfigResource {
            specifier: OwnedResourceSpecifier::Topic("orders".to_owned()),
            entries: settings.iter().map(entry).collect(),
        }
    }

    #[test]
    fn a_cluster_that_may_not_tell_is_told_apart_from_one_that_does_not_answer() {
        for refusal in [RDKafkaErrorCode::TopicAuthorizationFailed, RDKafkaErrorCode::UnsupportedFeature] {
            assert_eq!(told(Err(refusal)), Ok(None));
        }
        let silent = RDKafkaErrorCode::OperationTimedOut;
        assert_eq!(told(Err(silent)), Err(silent));
        assert_eq!(told(Ok(Some(topic(&[])))), Ok(None));
    }

    #[test]
    fn settings_say_what_may_vanish() {
        let told = |settings| allowed(&topic(settings)).unwrap();
        let day = [("cleanup.policy", "delete"), ("retention.ms", "86400000"), ("retention.bytes", "-1")];
        let of = |time, by_size, compacts| Retention { time, by_size, compacts };
        assert_eq!(told(&day), of(Some(Duration::from_secs(86_400)), false, false));
        let size =
            [("cleanup.policy", "compact,delete"), ("retention.ms", "-1"), ("retention.bytes", "1000")];
        assert_eq!(told(&size), of(None, true, true));
        assert_eq!(told(&[("cleanup.policy", "compact")]), of(None, false, true));
    }
}
