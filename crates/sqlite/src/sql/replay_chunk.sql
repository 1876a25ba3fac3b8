-- The messages that replay ?1 means above ?2 and up to ?3, at most ?4 of them and ?5 bytes, but at least one; found: how many there are.
-- ?6: the next of those that it names, as a JSON array; NULL: it names none. Dispatched: the cursor has dealt with it, and nothing else has
-- become of it. Walks the primary key of intents; those of the other tables are probed.
with looked as (
  select value as seq from json_each(?6)
  union all
  select seq from outbox_message where ?6 is null and seq > ?2 and seq <= ?3
),
meant as materialized (
  select m.seq, coalesce(octet_length(m.payload), 0) + coalesce(octet_length(m.key), 0) + coalesce(octet_length(m.headers), 0) as bytes
  from outbox_replay as r
  cross join looked as l
  cross join outbox_message as m on m.seq = l.seq
  where r.replay = ?1
    and m.seq <= (select high from outbox_cursor)
    and (r.topic is null or m.topic glob r.topic)
    and (r.key is null or m.key = r.key)
    and (r.correlation_id is null or m.correlation_id = r.correlation_id)
    and (r.created_from is null or m.created_at >= r.created_from)
    and (r.created_before is null or m.created_at < r.created_before)
    and not exists (select 1 from outbox_held as h where h.seq = m.seq)
    and not exists (select 1 from outbox_scheduled as s where s.seq = m.seq)
    and not exists (select 1 from outbox_held_action as a where a.seq = m.seq and a.kind in ('discard', 'cancel'))
  order by m.seq
  limit ?4 + 1
),
sized as materialized (
  select seq, bytes, sum(bytes) over (order by seq rows unbounded preceding) as bytes_so_far,
    row_number() over (order by seq) as nth
  from meant
)
select
  m.seq, m.id, m.key,
  -- As it was published: with what an operator had edited.
  case when e.edited like '%"topic"%' then e.topic else m.topic end as topic,
  case when e.edited like '%"payload"%' then e.payload else m.payload end as payload,
  case when e.edited like '%"headers"%' then e.headers else m.headers end as headers,
  case when e.edited like '%"partition"%' then e.partition else m.partition end as partition,
  m.content_type, m.correlation_id, m.causation_id,
  m.traceparent, m.tracestate, m.created_at, m.deliver_after,
  (julianday('now') - julianday(max(m.created_at, coalesce(m.deliver_after, m.created_at)))) * 86400.0 as age_seconds,
  (select count(*) from sized) as found
from sized as s
cross join outbox_message as m on m.seq = s.seq
left join outbox_held_edit as e on e.seq = s.seq
where s.nth <= ?4 and (s.bytes_so_far <= ?5 or s.nth = 1)
order by s.seq
