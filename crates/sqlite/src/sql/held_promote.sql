-- After a discard the first held message of the key waits for nobody, so it is due now if it only waited for an earlier one. One
-- that waits for something of its own goes on waiting for that.
-- ?1 key hash
update outbox_held
set state = 'retry', due_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now')
where seq = (select seq from outbox_held where key_hash = ?1 order by seq limit 1) and state = 'behind'
