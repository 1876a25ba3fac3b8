-- The ids of the messages above ?1 and up to ?2.
select id, seq from outbox_message where seq > ?1 and seq <= ?2
