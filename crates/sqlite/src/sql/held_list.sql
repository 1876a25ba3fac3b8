-- Held messages in order. Followers are counted over all held messages, before the filter.
-- ?1 id, ?2 topic, ?3 state, ?4 reason (NULL: any), ?5 at most so many (-1: all)
select
  h.seq, h.id, h.topic, h.key_hash, h.state, h.reason, h.error, h.attempts, h.failures, h.held_at, h.dead_letter,
  case h.state when 'retry' then h.due_at end as due_at,
  case when h.key_hash is null then 0 else h.followers end as followers,
  m.correlation_id, m.created_at, octet_length(m.payload) as payload_bytes
from (
  select *, count(*) over (
    partition by key_hash order by seq rows between 1 following and unbounded following) as followers
  from outbox_held
) as h
cross join outbox_message as m on m.seq = h.seq
where (?1 is null or h.id = ?1)
  and (?2 is null or h.topic = ?2)
  and (?3 is null or h.state = ?3)
  and (?4 is null or h.reason = ?4)
order by h.seq
limit ?5
