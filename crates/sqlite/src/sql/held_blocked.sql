-- Messages that are due and blocked by an earlier held message of their key, at most ?2.
-- ?1 topics that cannot be written to, as a JSON array
-- outbox_held_due is walked topic by topic as far as messages are due, outbox_held_key_hash_seq gives a probe each.
select h.seq
from outbox_held as h
where h.state in ('retry', 'topic')
  and h.topic not in (select value from json_each(?1))
  and h.due_at <= strftime('%Y-%m-%dT%H:%M:%fZ', 'now')
  and exists (
    select 1 from outbox_held as earlier
    where earlier.key_hash = h.key_hash
      and earlier.seq < h.seq
      and (earlier.state in ('behind', 'parked')
        or earlier.attempts > 0
        or earlier.topic in (select value from json_each(?1))
        or earlier.due_at > strftime('%Y-%m-%dT%H:%M:%fZ', 'now')))
limit ?2
