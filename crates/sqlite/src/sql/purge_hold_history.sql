-- Deletes how messages that are gone were held.
delete from outbox_hold_history where not exists (select 1 from outbox_message as m where m.seq = outbox_hold_history.seq)
