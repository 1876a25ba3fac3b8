-- Replay ?1 stood at ?2 and stands at ?3 now, with ?4 copies more. No row: it stands elsewhere. One that was paused or cancelled meanwhile
-- stays so. ?5 the state that it takes if it is still running, ?6 error, ?7 seq, ?8 id: why it is stopped; ?9 epoch.
-- Without copies and at the same place: it is taken up.
update outbox_replay
set pos = ?3,
  published = published + ?4,
  state = case when state = 'running' then ?5 else state end,
  error = case when state = 'running' then ?6 else error end,
  stopped_seq = case when state = 'running' then ?7 else stopped_seq end,
  stopped_id = case when state = 'running' then ?8 else stopped_id end,
  takes = case
    when ?4 > 0 then 0
    when taken_epoch = ?9 then takes
    when exists (select 1 from outbox_term as e where e.epoch = taken_epoch and e.ended_at is null) then takes + 1
    else 1
  end,
  taken_epoch = ?9,
  changed_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now')
where replay = ?1 and pos = ?2
returning state
