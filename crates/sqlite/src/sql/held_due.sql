-- Held messages that may be published now, in order, at most ?3 of them and ?4 bytes, but at least one.
-- ?1 topics that cannot be written to, ?2 keys whose followers may go, both as JSON arrays
-- A message waits for every earlier one of its key that cannot go now, and for one with an attempt charged, because that one
-- is published alone and may fail again. All held messages of a key have the same topic. CROSS JOIN keeps SQLite from walking
-- all intents to find the few.
with releasable as materialized (
  select h.seq, h.key_hash, h.attempts
  from outbox_held as h
  where h.topic not in (select value from json_each(?1))
    and (h.state = 'topic'
      or h.state = 'retry' and h.due_at <= strftime('%Y-%m-%dT%H:%M:%fZ', 'now')
      or h.state = 'behind' and h.key_hash in (select value from json_each(?2)))
    and not exists (
      select 1 from outbox_held as earlier
      where earlier.key_hash = h.key_hash
        and earlier.seq < h.seq
        and (earlier.state = 'parked'
          or earlier.attempts > 0
          or earlier.state = 'retry' and earlier.due_at > strftime('%Y-%m-%dT%H:%M:%fZ', 'now')
          or earlier.state = 'behind' and earlier.key_hash not in (select value from json_each(?2))))
  order by h.seq
  limit ?3
),
sized as materialized (
  select seq, key_hash, attempts, bytes, sum(bytes) over (order by seq rows unbounded preceding) as bytes_so_far
  from (
    select
      r.seq, r.key_hash, r.attempts,
      coalesce(octet_length(coalesce(e.payload, m.payload)), 0) + coalesce(octet_length(m.key), 0)
        + coalesce(octet_length(coalesce(e.headers, m.headers)), 0) as bytes
    from releasable as r
    cross join outbox_message as m on m.seq = r.seq
    left join outbox_held_edit as e on e.seq = r.seq
  )
)
select
  m.seq, m.id, m.key,
  -- As an operator has edited it.
  case when e.edited like '%"topic"%' then e.topic else m.topic end as topic,
  case when e.edited like '%"payload"%' then e.payload else m.payload end as payload,
  case when e.edited like '%"headers"%' then e.headers else m.headers end as headers,
  case when e.edited like '%"partition"%' then e.partition else m.partition end as partition,
  m.content_type, m.correlation_id, m.causation_id,
  m.traceparent, m.tracestate, m.created_at, m.deliver_after,
  (julianday('now') - julianday(max(m.created_at, coalesce(m.deliver_after, m.created_at)))) * 86400.0 as age_seconds,
  s.attempts, s.key_hash
from sized as s
cross join outbox_message as m on m.seq = s.seq
left join outbox_held_edit as e on e.seq = s.seq
where s.bytes_so_far <= ?4 or s.bytes_so_far = s.bytes
order by s.seq
