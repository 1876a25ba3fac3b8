-- How many messages of each key are held? Walks outbox_held_key_hash_seq.
select key_hash, count(*) as messages from outbox_held where key_hash is not null group by key_hash
