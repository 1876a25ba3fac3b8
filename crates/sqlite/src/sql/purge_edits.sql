-- Deletes what operators changed about messages that are gone: kept until now, so that people know what was sent.
delete from outbox_held_edit where not exists (select 1 from outbox_message as m where m.seq = outbox_held_edit.seq)
