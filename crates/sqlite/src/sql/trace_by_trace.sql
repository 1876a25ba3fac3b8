-- Which intents were written within the trace ?1 (32 hex digits of traceparent)? The first ?2. Index outbox_message_trace, whose expression these
-- are the words of; it is optional: without it the table is walked.
select m.seq from outbox_message as m where substr(m.traceparent, 4, 32) = ?1 and m.traceparent is not null order by m.seq limit ?2
