-- The sweep stands at $3 now, or has ended its lap ($4) and begins again. $1 epoch, $2 nonce: the term. No row: it is over.
update outbox.sweep s
set swept_to = case when $4 then 0 else $3 end,
  laps = s.laps + case when $4 then 1 else 0 end,
  lap_began_at = case when $4 then clock_timestamp() else s.lap_began_at end,
  lap_ended_at = case when $4 then clock_timestamp() else s.lap_ended_at end
where s.singleton and exists (select from outbox.cursor c where c.singleton and c.epoch = $1 and c.nonce = $2)
returning case when $4 then 0
  else (extract(epoch from greatest(clock_timestamp() - coalesce(s.lap_ended_at, s.lap_began_at), interval '0')) * 1000000)::bigint
  end as lap_age_us
