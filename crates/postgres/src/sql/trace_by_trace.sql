-- Which intents were written within the trace $1 (32 hex digits of traceparent)? The first $2. Index message_trace, whose expression these are
-- the words of; it is optional: without it the table is walked.
select to_jsonb(e) as intent
from outbox.envelope e
where substring(e.traceparent from 4 for 32) = $1 and e.traceparent is not null
order by e.seq
limit $2
