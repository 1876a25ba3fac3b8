-- A held message was dispatched.
-- ?1 seq
delete from outbox_held where seq = ?1
