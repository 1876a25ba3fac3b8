use rdkafka::ClientConfig;
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};
use rdkafka::util::Timeout;

use super::*;
use crate::kafka::topics::{count, create_topic, delete_topic, produce_with_java, read_all, unique_topic};
use crate::wait;

/// Publishes one record as this user; an error code if it is refused.
async fn publish(broker: &Broker, user: &str, topic: &str) -> Result<()> {
    let producer: ThreadedProducer<_> = ClientConfig::new()
        .set("bootstrap.servers", broker.sasl())
        .set("security.protocol", "SASL_PLAINTEXT")
        .set("sasl.mechanism", "PLAIN")
        .set("sasl.username", user)
        .set("sasl.password", "secret")
        .set("message.timeout.ms", "3000")
        .create()?;
    producer.send(BaseRecord::<str, str>::to(topic).key("k").payload("v")).map_err(|(error, _)| error)?;
    tokio::task::spawn_blocking(move || producer.flush(Timeout::After(Duration::from_secs(10)))).await??;
    Ok(())
}

#[tokio::test]
async fn a_broker_keeps_topics_and_users_apart_and_survives_a_kill() {
    let mut broker = Broker::start(Options::default().user("relay", "secret")).await.unwrap();
    let (allowed, forbidden) = (unique_topic("allowed"), unique_topic("forbidden"));
    create_topic(&broker.bootstrap(), &allowed, 3, &[("max.message.bytes", "20000")]).await;
    create_topic(&broker.bootstrap(), &forbidden, 1, &[]).await;
    broker.allow("relay", &["Write", "Describe"], &allowed).unwrap();
    publish(&broker, "relay", &allowed).await.unwrap();
    drop(publish(&broker, "relay", &forbidden).await);
    assert_eq!(count(&broker.bootstrap(), &forbidden).await, 0);
    assert_eq!(count(&broker.bootstrap(), &allowed).await, 1);

    broker.kill_9().await.unwrap();
    broker.start_again().await.unwrap();
    let bootstrap = broker.bootstrap();
    wait::until("the broker serves what it had", Duration::from_secs(30), || async {
        Ok((read_all(&bootstrap, &allowed).await.len() == 1).then_some(()))
    })
    .await
    .unwrap();
    let record = &read_all(&bootstrap, &allowed).await[0];
    assert_eq!((record.key.as_deref(), record.payload.as_deref()), (Some(&b"k"[..]), Some(&b"v"[..])));

    produce_with_java(&bootstrap, &allowed, &[("a".into(), "1".into()), ("b".into(), "2".into())]);
    assert_eq!(count(&bootstrap, &allowed).await, 3);
    delete_topic(&bootstrap, &forbidden).await;
}
