-- Writes one intent and returns its id, or the id of the first one of its idempotency key.
select outbox.emit(
  topic => $1, payload => $2::bytea, key => $3, headers => $4::jsonb, partition => $5, content_type => $6, correlation_id => $7,
  causation_id => $8, traceparent => $9, tracestate => $10, id => $11, deliver_after => $12, idempotency_key => $13)
