-- Makes a message whose time has come a held one: due, or behind what is held of its key.
-- ?1 seq, ?2 id, ?3 topic, ?4 key hash, ?5 whether it is behind
insert into outbox_held (seq, id, topic, key_hash, state, reason, due_at)
values (
  ?1, ?2, ?3, ?4, iif(?5, 'behind', 'retry'), iif(?5, 'behind', 'scheduled'),
  iif(?5, null, strftime('%Y-%m-%dT%H:%M:%fZ', 'now')))
