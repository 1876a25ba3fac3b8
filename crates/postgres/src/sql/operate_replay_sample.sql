-- Some messages ($1) as an operator sees them: no key, no payload. Index: message_pkey.
select e.seq, e.id, e.topic, e.correlation_id, e.payload_bytes, e.created_at
from outbox.envelope e
where e.seq = any ($1::bigint[])
order by e.seq
