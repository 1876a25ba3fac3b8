-- Which intents were caused by one of these (?1, a JSON array)? The first ?2. Index outbox_message_causation, which is optional: without it the
-- table is walked.
select m.seq
from outbox_message as m
where m.causation_id in (select a.value from json_each(?1) as a) and m.causation_id is not null
order by m.seq
limit ?2
