-- The term of nonce ?1 ends in order. Before the nonce goes.
update outbox_term set ended_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now') where epoch = (select epoch from outbox_cursor where nonce = ?1)
