-- What is undelivered? Exact up to ?1 messages; beyond, the distance in seq, which is never less. The oldest is the first by
-- seq above the cursor, or the first that is held: created_at follows seq as far as the clock does. Held messages are never
-- above the cursor: a hold is settled together with what is before it.
with
cursor as (select high from outbox_cursor),
counted as (
  select count(*) as messages
  from (select 1 from outbox_message where seq > (select high from cursor) limit ?1 + 1)
),
oldest as (
  select created_at from outbox_message where seq = (select min(seq) from outbox_message where seq > (select high from cursor))
  union all
  select created_at from outbox_message where seq = (select min(seq) from outbox_held)
)
select
  case
    when counted.messages <= ?1 then counted.messages
    else (select max(seq) from outbox_message) - (select high from cursor)
  end as messages,
  coalesce((select max((julianday('now') - julianday(created_at)) * 86400.0) from oldest), 0.0) as oldest_seconds
from counted
