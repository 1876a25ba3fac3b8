-- The next messages below the cursor.
-- ?1 above this seq, ?2 high, ?3 rows
select seq from outbox_message where seq > ?1 and seq <= ?2 order by seq limit ?3
