-- These intents (?1, a JSON array of seqs) without key, payload and headers, by primary key. One object each.
select json_object(
  'seq', m.seq,
  'id', iif(typeof(m.id) = 'blob', lower(hex(m.id)), m.id),
  'topic', m.topic,
  'partition', m.partition,
  'content_type', m.content_type,
  'correlation_id', m.correlation_id,
  'causation_id', m.causation_id,
  'traceparent', m.traceparent,
  'idempotency_key', m.idempotency_key,
  'created_at', m.created_at,
  'deliver_after', m.deliver_after,
  'keyed', json(iif(m.key is null, 'false', 'true')),
  'payload_bytes', octet_length(m.payload)) as intent
from json_each(?1) as a
cross join outbox_message as m on m.seq = a.value
order by m.seq
