-- Which dispatched messages above ?7 and up to ?8 are meant? Conditions, NULL means any: ?1 ids in lower case as a JSON array, ?2 correlation
-- id, ?3 topic (as GLOB has it), ?4 key, ?5 inserted from, ?6 and before. Walks the primary key of intents.
select m.seq
from outbox_message as m
where m.seq > ?7 and m.seq <= ?8
  and (?1 is null
    or lower(m.id) in (select value from json_each(?1))
    or lower(hex(m.id)) in (select replace(value, '-', '') from json_each(?1)))
  and (?2 is null or m.correlation_id = ?2)
  and (?3 is null or m.topic glob ?3)
  and (?4 is null or m.key = ?4)
  and (?5 is null or m.created_at >= ?5)
  and (?6 is null or m.created_at < ?6)
  and not exists (select 1 from outbox_held as h where h.seq = m.seq)
  and not exists (select 1 from outbox_scheduled as s where s.seq = m.seq)
  and not exists (select 1 from outbox_held_action as a where a.seq = m.seq and a.kind in ('discard', 'cancel'))
order by m.seq
