-- Moves the cursor if the term is not over and the cursor is where the settlement thinks it is; changes nothing otherwise.
-- Settling shows that the relay is alive, so it also renews the lease.
-- ?1 epoch, ?2 nonce, ?3 high before, ?4 high after, ?5 lease in seconds; ?6 message whose attempt is started (NULL: none), ?7 its
-- attempts, ?8 whether the term has got on
update outbox_cursor
set high = ?4,
    trial_seq = ?6,
    trials = ?7,
    terms_unsettled = case when ?8 then 0 else terms_unsettled end,
    settled_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now'),
    kept_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now'),
    lease_until = strftime('%Y-%m-%dT%H:%M:%fZ', 'now', printf('+%.3f seconds', ?5))
where epoch = ?1 and nonce = ?2 and high = ?3
