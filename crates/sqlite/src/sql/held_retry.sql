-- Makes a held message due now; its attempts stay charged. What waits for its topic goes on doing so: it must be possible to send it
-- elsewhere.
-- ?1 seq
update outbox_held set state = case when state = 'topic' then 'topic' else 'retry' end, due_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now') where seq = ?1
