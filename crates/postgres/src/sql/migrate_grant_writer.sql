-- The writer emits and cancels, and does nothing else: it cannot read a payload, change or delete an intent, or choose xid,
-- created_at or seq. SELECT on (id, seq) is for `insert ... returning id, seq`, which ORMs do, and that on idempotency_key for emit,
-- which looks for the intent that was written first.
grant usage on schema outbox to writer_role;
grant insert (id, topic, key, payload, headers, partition, content_type, correlation_id, causation_id, traceparent, tracestate,
  deliver_after, idempotency_key)
  on outbox.message to writer_role;
grant select (id, seq, idempotency_key) on outbox.message to writer_role;
grant execute on function
  outbox.emit(text, bytea, text, jsonb, integer, text, text, text, text, text, uuid, timestamptz, text),
  outbox.emit(text, text, text, jsonb, integer, text, text, text, text, text, uuid, timestamptz, text),
  outbox.emit(text, jsonb, text, jsonb, integer, text, text, text, text, text, uuid, timestamptz, text),
  outbox.cancel(uuid, text)
  to writer_role;
