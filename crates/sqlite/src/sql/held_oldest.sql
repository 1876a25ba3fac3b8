-- Some held messages that are meant, the oldest first, each with the first held message of its key and whether it is due.
-- ?1 id, ?2 topic (as GLOB has it), ?3 state, ?4 reason, ?5 key hash, ?6 and ?7 seconds since it was held, at least and at most
-- (NULL: any), ?8 above this seq, ?9 up to that one, ?10 at most so many
select
  h.seq, h.id, h.topic, h.key_hash, h.reason, m.correlation_id,
  coalesce((select min(e.seq) from outbox_held as e where e.key_hash = h.key_hash), h.seq) as head_seq,
  h.state = 'retry' and h.due_at <= strftime('%Y-%m-%dT%H:%M:%fZ', 'now') as is_due
from outbox_held as h
cross join outbox_message as m on m.seq = h.seq
where h.seq > ?8 and h.seq <= ?9
  and (?1 is null or h.id = ?1)
  and (?2 is null or h.topic glob ?2)
  and (?3 is null or h.state = ?3)
  and (?4 is null or h.reason = ?4)
  and (?5 is null or h.key_hash = ?5)
  and (?6 is null or h.held_at <= strftime('%Y-%m-%dT%H:%M:%fZ', 'now', printf('-%.3f seconds', ?6)))
  and (?7 is null or h.held_at > strftime('%Y-%m-%dT%H:%M:%fZ', 'now', printf('-%.3f seconds', ?7)))
order by h.seq
limit ?10
