-- Sets a message aside, or stores the next failure of one that is held already.
-- ?1 seq, ?2 id, ?3 topic, ?4 key hash, ?5 state, ?6 reason, ?7 error, ?8 attempts, ?9 seconds until due, ?10 high before,
-- ?11 where the copy of a parked message is
-- A message at or below the cursor that is not held any more was discarded by an operator while it was tried: it stays so.
insert into outbox_held (seq, id, topic, key_hash, state, reason, error, attempts, failures, due_at, dead_letter)
select
  ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8,
  case when ?7 is null then '[]'
       else json_array(json_object('at', strftime('%Y-%m-%dT%H:%M:%fZ', 'now'), 'error', ?7)) end,
  case ?5 when 'retry' then strftime('%Y-%m-%dT%H:%M:%fZ', 'now', printf('+%.3f seconds', ?9))
          when 'topic' then strftime('%Y-%m-%dT%H:%M:%fZ', 'now') end,
  ?11
where ?1 > ?10 or exists (select 1 from outbox_held where seq = ?1)
on conflict (seq) do update
set topic = excluded.topic,
    -- A message that is parked under the policy `skip` holds its key back no longer.
    key_hash = excluded.key_hash,
    state = excluded.state,
    reason = excluded.reason,
    error = coalesce(excluded.error, error),
    attempts = excluded.attempts,
    failures = case
      when excluded.error is null then failures
      when json_array_length(failures) < 10 then json_insert(failures, '$[#]', json_extract(excluded.failures, '$[0]'))
      else json_insert(json_remove(failures, '$[0]'), '$[#]', json_extract(excluded.failures, '$[0]')) end,
    due_at = excluded.due_at,
    dead_letter = coalesce(excluded.dead_letter, dead_letter)
