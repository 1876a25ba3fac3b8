-- Gives an edited message its place: under the key of its destination, parked or due now. What was skipped has no place in the order,
-- and gets none.
-- ?1 seq, ?2 destination (NULL: as it was), ?3 key hash, ?4 whether it is due now
update outbox_held
set topic = coalesce(?2, topic),
    key_hash = case when ?2 is null or key_hash is null then key_hash else ?3 end,
    state = case when ?4 then 'retry' else 'parked' end,
    due_at = case when ?4 then strftime('%Y-%m-%dT%H:%M:%fZ', 'now') end
where seq = ?1
