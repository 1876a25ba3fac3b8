-- The first message at or above ?1, and when it was inserted.
select seq, created_at from outbox_message where seq >= ?1 order by seq limit 1
