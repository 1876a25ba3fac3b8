-- One held message, with the first held message of its key (itself, if nothing is before it).
-- ?1 id
select
  h.seq, h.topic, h.key_hash, h.state, h.reason, m.correlation_id,
  coalesce(
    (select e.id from outbox_held as e where e.key_hash = h.key_hash order by e.seq limit 1),
    h.id) as head
from outbox_held as h
cross join outbox_message as m on m.seq = h.seq
where h.id = ?1
order by h.seq
limit 1
