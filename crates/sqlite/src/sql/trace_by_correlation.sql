-- Which intents have the correlation id ?1? The first ?2. Index outbox_message_correlation, which is optional: without it the table is walked.
select m.seq from outbox_message as m where m.correlation_id = ?1 order by m.seq limit ?2
