-- The sweep stands at ?3 now, or has ended its lap (?4) and begins again. No row if the term is over.
-- ?1 epoch, ?2 nonce, ?5 stranded messages found
update outbox_sweep
set swept_to = case when ?4 then 0 else ?3 end,
    laps = laps + ?4,
    found = found + ?5,
    lap_began_at = case when ?4 then strftime('%Y-%m-%dT%H:%M:%fZ', 'now') else lap_began_at end,
    lap_ended_at = case when ?4 then strftime('%Y-%m-%dT%H:%M:%fZ', 'now') else lap_ended_at end
where exists (select 1 from outbox_cursor where epoch = ?1 and nonce = ?2)
returning (julianday('now') - julianday(coalesce(lap_ended_at, lap_began_at))) * 86400.0 as lap_age
