-- Holds a stranded message, due at once.
-- ?1 seq, ?2 id, ?3 topic, ?4 key hash
insert into outbox_held (seq, id, topic, key_hash, state, reason, due_at)
values (?1, ?2, ?3, ?4, 'retry', 'stranded', strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
