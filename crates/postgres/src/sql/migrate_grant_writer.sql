-- The writer emits and does nothing else: it cannot read a payload, change or delete an intent, or choose xid, created_at or seq.
-- SELECT on (id, seq) is for `insert ... returning id, seq`, which ORMs do.
grant usage on schema outbox to writer_role;
grant insert (id, topic, key, payload, headers, partition, content_type, correlation_id, causation_id, traceparent, tracestate)
  on outbox.message to writer_role;
grant select (id, seq) on outbox.message to writer_role;
grant execute on function
  outbox.emit(text, bytea, text, jsonb, integer, text, text, text, text, text, uuid),
  outbox.emit(text, text, text, jsonb, integer, text, text, text, text, text, uuid),
  outbox.emit(text, jsonb, text, jsonb, integer, text, text, text, text, text, uuid)
  to writer_role;
