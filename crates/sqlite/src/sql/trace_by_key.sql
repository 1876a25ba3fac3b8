-- Which intents have the Kafka key ?1, in topic ?3 (NULL: in any)? The last ?2: what is asked of a key is what happened lately. Index
-- outbox_message_key, which is optional: without it the table is walked.
select m.seq from outbox_message as m where m.key = ?1 and (?3 is null or m.topic = ?3) order by m.seq desc limit ?2
