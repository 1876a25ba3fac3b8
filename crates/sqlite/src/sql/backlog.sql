-- What is undelivered? Exact up to ?1 messages; beyond, the distance in seq, which is never less. The oldest is the first by
-- seq above the cursor, or the first that is held: created_at follows seq as far as the clock does. A scheduled one's age counts from
-- its time on. Held messages are never
-- above the cursor: a hold is settled together with what is before it.
with
cursor as (select high from outbox_cursor),
counted as (
  select count(*) as messages
  from (select 1 from outbox_message where seq > (select high from cursor) limit ?1 + 1)
),
oldest as (
  select max(created_at, coalesce(deliver_after, created_at)) as since
  from outbox_message where seq = (select min(seq) from outbox_message where seq > (select high from cursor))
  union all
  select max(created_at, coalesce(deliver_after, created_at))
  from outbox_message where seq = (select min(seq) from outbox_held)
  union all
  select min(due_at) from outbox_scheduled
)
select
  case
    when counted.messages <= ?1 then counted.messages
    else (select max(seq) from outbox_message) - (select high from cursor)
  end as messages,
  max(coalesce((select max((julianday('now') - julianday(since)) * 86400.0) from oldest), 0.0), 0.0) as oldest_seconds,
  (select count(*) from (
    select 1 from outbox_scheduled where due_at > strftime('%Y-%m-%dT%H:%M:%fZ', 'now') order by due_at limit ?1)) as scheduled
from counted
