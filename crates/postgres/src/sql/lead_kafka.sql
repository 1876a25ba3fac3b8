-- Remembers the Kafka cluster ($3) that this outbox is published to, unless one is remembered. $1 epoch, $2 nonce: the term. The commit
-- is synchronous, as that of lead_bump.sql: the first record follows.
with synchronous as (select set_config('synchronous_commit', 'on', true))
update outbox.cursor c
set kafka_cluster = coalesce(c.kafka_cluster, $3)
from synchronous
where c.singleton and c.epoch = $1 and c.nonce = $2
