-- Which consumers have claimed these messages ($1), and how many copies did they absorb? The key of the table begins with the consumer,
-- so each name is found by one probe, and each message of each consumer by another: handled_pkey alone.
with recursive consumers (consumer) as (
  (select h.consumer from inbox.handled h order by h.consumer limit 1)
  union all
  select (select h.consumer from inbox.handled h where h.consumer > c.consumer order by h.consumer limit 1)
  from consumers c
  where c.consumer is not null
)
select to_jsonb(h) as claim
from consumers c
cross join unnest($1::uuid[]) as asked (id)
join inbox.handled h on h.consumer = c.consumer and h.id = asked.id
order by h.claimed_at
limit 10000
