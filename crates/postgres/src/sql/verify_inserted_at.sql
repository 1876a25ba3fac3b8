-- The first message at or above $1, and when it was inserted. Index: message_pkey.
select m.seq, m.created_at from outbox.message m where m.seq >= $1 order by m.seq limit 1
