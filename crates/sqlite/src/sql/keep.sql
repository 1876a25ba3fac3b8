-- Renews the lease; changes nothing if the term is over. A lease that ran out is renewed all the same: nobody took it, and
-- whoever does bumps the epoch.
-- ?1 epoch, ?2 nonce, ?3 lease in seconds
update outbox_cursor
set kept_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now'),
    lease_until = strftime('%Y-%m-%dT%H:%M:%fZ', 'now', printf('+%.3f seconds', ?3))
where epoch = ?1 and nonce = ?2
