-- The id of a message, to be kept with its hold.
-- ?1 seq
select id from outbox_message where seq = ?1
