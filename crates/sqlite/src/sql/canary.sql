-- Writes a canary for topic ?1, as an application writes an intent.
insert into outbox_message (topic, payload, content_type)
values (?1, json_object('canary', strftime('%Y-%m-%dT%H:%M:%fZ', 'now')), 'application/json')
returning id
