-- Writes one intent; no row if there is one of this idempotency key. NULL in id and correlation_id means a fresh one.
insert into outbox_message
  (topic, payload, key, headers, partition, content_type, correlation_id, causation_id, traceparent, tracestate, id, deliver_after,
   idempotency_key)
values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)
on conflict (idempotency_key) where idempotency_key is not null do nothing
returning id
