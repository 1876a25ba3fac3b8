-- Puts a message aside until the time that its intent names.
-- ?1 seq, ?2 id, ?3 topic, ?4 key hash
insert into outbox_scheduled (seq, id, topic, key_hash, due_at)
select ?1, ?2, ?3, ?4, m.deliver_after from outbox_message as m where m.seq = ?1
