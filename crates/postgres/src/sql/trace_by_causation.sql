-- Which intents were caused by one of these ($1)? The first $2. Index message_causation, which is optional: without it the table is walked.
select to_jsonb(e) as intent
from outbox.envelope e
where e.causation_id = any ($1::text[])
order by e.seq
limit $2
