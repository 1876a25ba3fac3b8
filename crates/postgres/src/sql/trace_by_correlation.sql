-- Which intents have the correlation id $1? The first $2. Index message_correlation, which is optional: without it the table is walked.
select to_jsonb(e) as intent
from outbox.envelope e
where e.correlation_id = $1
order by e.seq
limit $2
