-- Stores what is published of a held message instead of what its intent says.
-- ?1 seq, ?2 which columns count, as a JSON array, ?3 topic, ?4 partition, ?5 headers, ?6 payload (NULL: as it was)
insert into outbox_held_edit (seq, edited, topic, partition, headers, payload)
values (?1, ?2, ?3, ?4, ?5, ?6)
on conflict (seq) do update
set edited = excluded.edited,
    topic = excluded.topic,
    partition = excluded.partition,
    headers = excluded.headers,
    payload = coalesce(excluded.payload, payload),
    edited_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now')
