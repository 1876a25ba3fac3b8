-- The relay reads and purges intents, and keeps its own tables; it cannot write or alter an intent. Operators who retry or discard
-- held messages do so with this role.
grant usage on schema outbox to relay_role;
grant select, delete on outbox.message to relay_role;
grant select on outbox.envelope, outbox.migration to relay_role;
-- Whether the sequence stands behind the cursor.
grant select on sequence outbox.message_seq_seq to relay_role;
grant select, update on outbox.cursor to relay_role;
grant select, insert, delete on outbox.receipt to relay_role;
grant select, insert, update, delete on outbox.held to relay_role;
grant select, insert on outbox.held_action to relay_role;
grant select, insert, delete on outbox.scheduled to relay_role;
grant select, insert, update, delete on outbox.cancelled to relay_role;
grant select, insert, update, delete on outbox.held_edit to relay_role;
grant select, insert on outbox.operation to relay_role;
grant select, update on outbox.sweep to relay_role;
grant select, insert, delete on outbox.hold_history, outbox.rewind to relay_role;
grant select, insert, update, delete on outbox.term to relay_role;
grant select, insert, update on outbox.replay to relay_role;
grant select on outbox.operator_actions to relay_role;
-- What a proof of delivery compares, and the canary.
grant select on outbox.fingerprint to relay_role;
grant execute on function outbox.canary(text) to relay_role;
