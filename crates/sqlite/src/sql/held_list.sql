-- Held messages in order. Followers and heads are looked for over all held messages of the keys that are shown, before the filter.
-- ?1 id, ?2 topic (as GLOB has it), ?3 state, ?4 reason, ?5 key hash, ?6 and ?7 seconds since it was held, at least and at most
-- (NULL: any), ?8 at most so many (-1: all)
with shown as materialized (
  select h.*
  from outbox_held as h
  where (?1 is null or h.id = ?1)
  and (?2 is null or h.topic glob ?2)
  and (?3 is null or h.state = ?3)
  and (?4 is null or h.reason = ?4)
  and (?5 is null or h.key_hash = ?5)
  and (?6 is null or h.held_at <= strftime('%Y-%m-%dT%H:%M:%fZ', 'now', printf('-%.3f seconds', ?6)))
  and (?7 is null or h.held_at > strftime('%Y-%m-%dT%H:%M:%fZ', 'now', printf('-%.3f seconds', ?7)))
  order by h.seq
  limit ?8
),
ranked as materialized (
  select
    k.seq,
    count(*) over (partition by k.key_hash order by k.seq rows between 1 following and unbounded following) as followers,
    first_value(k.seq) over (partition by k.key_hash order by k.seq) as head_seq,
    first_value(k.id) over (partition by k.key_hash order by k.seq) as head_id
  from outbox_held as k
  where k.key_hash in (select key_hash from shown)
)
select
  s.seq, s.id, s.topic, s.key_hash, s.state, s.reason, s.error, s.attempts, s.failures, s.held_at, s.dead_letter,
  case s.state when 'retry' then s.due_at end as due_at,
  coalesce(r.followers, 0) as followers, nullif(r.head_seq, s.seq) as head_seq, r.head_id,
  m.correlation_id, m.created_at, octet_length(m.payload) as payload_bytes, d.edited, d.edited_at
from shown as s
cross join outbox_message as m on m.seq = s.seq
left join ranked as r on r.seq = s.seq
left join outbox_held_edit as d on d.seq = s.seq
order by s.seq
