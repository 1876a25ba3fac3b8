-- Makes some held messages due now, the oldest first, and keeps who did it and why, for each of them.
-- Filters: $1 id, $2 topic (as LIKE has it), $3 state, $4 reason, $5 key hash, $6 and $7 microseconds since it was held, at least
-- and at most; NULL means any. $8: above this seq, $9: up to that one, $10: at most so many; $11 who, $12 why.
-- Those that wait behind another one are found and left: they go after it, never before. The same for those that are due already.
-- A lock that is not had at once gives way to the relay: a settle locks in another order, and must never be the one that a deadlock
-- ends. Indexes: held_pkey, held_key_hash_seq.
with patience as materialized (
  select set_config('lock_timeout', '300ms', true) as set
), found as materialized (
  select h.seq, h.key_hash, coalesce(h.state = 'retry' and h.due_at <= clock_timestamp(), false) as is_due
  from outbox.held h
  where (select p.set is not null from patience p) and h.seq > $8 and h.seq <= $9
    and ($1::uuid is null or h.id = $1)
    and ($2::text is null or h.topic like $2)
    and ($3::text is null or h.state = $3)
    and ($4::text is null or h.reason = $4)
    and ($5::bigint is null or h.key_hash = $5)
    and ($6::bigint is null or h.held_at <= clock_timestamp() - make_interval(secs => $6 / 1000000.0))
    and ($7::bigint is null or h.held_at > clock_timestamp() - make_interval(secs => $7 / 1000000.0))
  order by h.seq
  limit $10
  for update
), retried as (
  update outbox.held h
  -- What waits for its topic goes on doing so: it must be possible to send it elsewhere.
  set state = case when h.state = 'topic' then 'topic' else 'retry' end, due_at = clock_timestamp()
  from found f
  where h.seq = f.seq and not f.is_due
    and not exists (select from outbox.held e where e.key_hash = f.key_hash and e.seq < f.seq)
  returning h.id, h.seq, h.topic, h.reason
), audited as (
  insert into outbox.held_action (kind, id, seq, topic, reason_held, correlation_id, who, why)
  select 'retry', r.id, r.seq, r.topic, r.reason, e.correlation_id, $11, $12
  from retried r left join outbox.envelope e on e.seq = r.seq
)
select count(*) as found, (select count(*) from retried) as done, max(f.seq) as reached from found f
