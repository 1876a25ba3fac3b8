-- The reader looks and changes nothing: status, held messages, receipts, the audit. It sees no key, no payload and no header.
grant usage on schema outbox to reader_role;
grant select (seq, xid, id, topic, partition, content_type, correlation_id, causation_id, traceparent, tracestate, created_at,
  deliver_after, idempotency_key)
  on outbox.message to reader_role;
grant select on outbox.envelope, outbox.migration, outbox.cursor, outbox.receipt, outbox.held, outbox.held_action to reader_role;
grant select on sequence outbox.message_seq_seq to reader_role;
grant select on outbox.scheduled, outbox.cancelled, outbox.operation, outbox.sweep to reader_role;
grant select on outbox.hold_history, outbox.rewind, outbox.term to reader_role;
-- Everything but the key that a replay was asked for.
grant select (replay, state, who, why, requested_at, seqs, correlation_id, topic, created_from, created_before, seq_first, seq_last,
  to_topic, rate, total, pos, published, skipped, taken_epoch, takes, stopped_seq, stopped_id, error, changed_at, changed_by)
  on outbox.replay to reader_role;
grant select (seq, edited, topic, partition, edited_at) on outbox.held_edit to reader_role;
-- Hashes of keys and payloads, for `outboxd verify`.
grant select on outbox.fingerprint to reader_role;
