-- Changes replay $1, if it is in one of the states $2, to the state $3; $4: leaving out the message that it was stopped by; $5 who, $6 why,
-- $7 the kind that the audit has it under. The state that it was in; no row: there is none.
with found as materialized (
  select r.replay, r.state, r.stopped_seq, r.stopped_id, r.error from outbox.replay r where r.replay = $1 for update
), changed as (
  update outbox.replay r
  set state = $3,
    pos = case when $4 then greatest(r.pos, r.stopped_seq) else r.pos end,
    skipped = r.skipped + case when $4 then 1 else 0 end,
    error = case when $3 = 'running' then null else r.error end,
    stopped_seq = case when $3 = 'running' then null else r.stopped_seq end,
    stopped_id = case when $3 = 'running' then null else r.stopped_id end,
    taken_epoch = null,
    takes = 0,
    changed_at = clock_timestamp(),
    changed_by = $5
  from found f
  where r.replay = f.replay and f.state = any ($2::text[]) and (not $4 or f.stopped_seq is not null)
  returning r.replay
), audited as (
  insert into outbox.operation (kind, who, why, details)
  select $7, $5, $6, jsonb_strip_nulls(jsonb_build_object(
    'replay', f.replay, 'was', f.state, 'error', f.error,
    'skipped', case when $4 then f.stopped_id::text || '@' || f.stopped_seq end))
  from found f join changed c on c.replay = f.replay
)
select f.state, exists (select from changed) as is_changed from found f
