-- Gives a held message up. The intent stays until it is purged.
-- ?1 seq
delete from outbox_held where seq = ?1
