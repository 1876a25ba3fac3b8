//! What a topic's configuration allows to vanish.

use std::time::Duration;

use outboxd_core::verify::Retention;

use crate::config::KafkaConfig;
use crate::connection::Connection;
use crate::inspect::settings_of;

/// What may vanish from a topic; `None` if the cluster does not tell (no `DESCRIBE_CONFIGS`).
pub async fn retention(config: &KafkaConfig, topic: &str) -> Option<Retention> {
    let topics = [topic.to_owned()];
    let settings = settings_of(config, Connection::silent(), &topics).await;
    let settings = settings.get(topic)?;
    let setting = |name: &str| settings.get(name)?.value.clone();
    let policy = setting("cleanup.policy")?;
    if !policy.contains("delete") {
        return Some(Retention { time: None, by_size: false, compacts: policy.contains("compact") });
    }
    // Kafka's word for "without a limit" is -1.
    let time = setting("retention.ms")?.parse().ok().map(Duration::from_millis);
    let by_size = setting("retention.bytes").is_some_and(|bytes| bytes.parse::<u64>().is_ok());
    Some(Retention { time, by_size, compacts: policy.contains("compact") })
}
