-- Gives replay ?1 the state ?2; ?3: leaving out the message that it was stopped by; ?4 who.
update outbox_replay
set state = ?2,
  pos = case when ?3 then max(pos, stopped_seq) else pos end,
  skipped = skipped + case when ?3 then 1 else 0 end,
  error = case when ?2 = 'running' then null else error end,
  stopped_seq = case when ?2 = 'running' then null else stopped_seq end,
  stopped_id = case when ?2 = 'running' then null else stopped_id end,
  taken_epoch = null,
  takes = 0,
  changed_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now'),
  changed_by = ?4
where replay = ?1
