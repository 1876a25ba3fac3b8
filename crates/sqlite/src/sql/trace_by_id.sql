-- Which intents have one of these message ids (?1, a JSON array of each in every form that it may be stored in, blobs as hexadecimal digits)?
-- The first ?2. Index outbox_message_id, which is optional: without it the table is walked.
select m.seq
from outbox_message as m
where m.id in (
  select a.value from json_each(?1) as a where length(a.value) = 36
  union all
  select unhex(a.value) from json_each(?1) as a where length(a.value) = 32)
order by m.seq
limit ?2
