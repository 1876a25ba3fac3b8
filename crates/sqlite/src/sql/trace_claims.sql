-- Which consumers have claimed these messages (?1, a JSON array of ids), and how many copies did they absorb? The key of the table begins with
-- the consumer, so each name is found by one probe, and each message of each consumer by another.
with recursive consumers (consumer) as (
  select min(consumer) from inbox_handled
  union all
  select (select min(h.consumer) from inbox_handled as h where h.consumer > c.consumer)
  from consumers as c
  where c.consumer is not null
)
select json_object('id', h.id, 'consumer', h.consumer, 'claimed_at', h.claimed_at, 'topic', h.topic, 'partition', h.partition,
  'record_offset', h.record_offset, 'duplicates', h.duplicates, 'last_duplicate_at', h.last_duplicate_at) as claim
from consumers as c
cross join json_each(?1) as a
cross join inbox_handled as h on h.consumer = c.consumer and h.id = a.value
order by h.claimed_at
limit 10000
