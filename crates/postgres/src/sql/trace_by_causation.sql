-- Which intents were caused by one of these ($1)? The first $2. Index message_causation, which is optional: without it the table is walked.
-- seq + 0: with seq alone the planner walks a table that was never analysed in the order of seq, index or not.
select to_jsonb(e) as intent
from outbox.envelope e
where e.causation_id = any ($1::text[])
order by e.seq + 0
limit $2
