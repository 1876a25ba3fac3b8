-- The held messages with an id, each with the first held message of its key (itself, if nothing is before it). An application may
-- have used an id more than once.
-- ?1 id, ?2 seq, NULL for any
select
  h.seq, h.topic, h.key_hash, h.state, h.reason, m.correlation_id, f.id as head, f.seq as head_seq
from outbox_held as h
cross join outbox_message as m on m.seq = h.seq
cross join outbox_held as f
  on f.seq = coalesce((select e.seq from outbox_held as e where e.key_hash = h.key_hash order by e.seq limit 1), h.seq)
where h.id = ?1 and (?2 is null or h.seq = ?2)
order by h.seq
