-- Takes the lead if nobody holds it (same condition as leader.sql); no row if somebody does.
-- ?1 nonce, ?2 relay, ?3 lease in seconds
update outbox_cursor
set epoch = epoch + 1,
    terms_unsettled = terms_unsettled + 1,
    nonce = ?1,
    relay = ?2,
    led_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now'),
    kept_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now'),
    lease_until = strftime('%Y-%m-%dT%H:%M:%fZ', 'now', printf('+%.3f seconds', ?3))
where (strftime('%Y-%m-%dT%H:%M:%fZ', 'now') >= kept_at and strftime('%Y-%m-%dT%H:%M:%fZ', 'now') < lease_until) is not true
returning epoch, led_at, high
