-- Which intents have one of these message ids ($1)? The first $2. Index message_id, which is optional: without it the table is walked.
-- Envelopes alone, so that no right to key, payload or headers is needed. An id may have been used more than once.
-- seq + 0: with seq alone the planner walks a table that was never analysed in the order of seq, index or not.
select to_jsonb(e) as intent
from outbox.envelope e
where e.id = any ($1::uuid[])
order by e.seq + 0
limit $2
