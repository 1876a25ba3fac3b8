-- Gives an edited message its place: under the key of its topic, parked or due now.
-- ?1 seq, ?2 topic, ?3 key hash, ?4 whether it is due now
update outbox_held
set topic = ?2,
    key_hash = ?3,
    state = case when ?4 then 'retry' else 'parked' end,
    due_at = case when ?4 then strftime('%Y-%m-%dT%H:%M:%fZ', 'now') end
where seq = ?1
