-- Up to where are the next ?3 messages above ?1 and up to ?2? NULL: to the end. Walks the primary key, which is not read beyond its own.
select seq from outbox_message where seq > ?1 and seq <= ?2 order by seq limit 1 offset ?3 - 1
