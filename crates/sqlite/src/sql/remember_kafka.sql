-- Remembers the Kafka cluster that this outbox is published to, unless one is remembered; changes nothing if the term is over.
-- ?1 epoch, ?2 nonce, ?3 name of the cluster
update outbox_cursor
set kafka_cluster = coalesce(kafka_cluster, ?3)
where epoch = ?1 and nonce = ?2
