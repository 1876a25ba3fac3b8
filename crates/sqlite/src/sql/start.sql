-- Where does dispatching start? No row if the term is over.
-- ?1 epoch, ?2 nonce
select high, kafka_cluster, (select coalesce(max(action), 0) from outbox_held_action) as actions
from outbox_cursor
where epoch = ?1 and nonce = ?2
