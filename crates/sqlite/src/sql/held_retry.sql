-- Makes a held message due now; its attempts stay charged.
-- ?1 seq
update outbox_held set state = 'retry', due_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now') where seq = ?1
