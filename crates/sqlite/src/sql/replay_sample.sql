-- Some messages as an operator sees them: no key, no payload. ?1 their seqs as a JSON array
select seq, id, topic, correlation_id, octet_length(payload) as payload_bytes, created_at
from outbox_message
where seq in (select value from json_each(?1))
order by seq
