-- Gives some held messages up for good, the newest first, and keeps who did it and why, for each of them.
-- Filters: $1 id, $2 topic (as LIKE has it), $3 state, $4 reason, $5 key hash, $6 and $7 microseconds since it was held, at least
-- and at most; NULL means any. $8: above this seq, $9: up to that one, $10: at most so many; $11 who, $12 why.
-- From the newest on, so that a head goes last: it keeps its followers back until they are gone too. What is left of a key and only
-- waited for one of these becomes due.
-- A lock that is not had at once gives way to the relay: a settle locks in another order, and must never be the one that a deadlock
-- ends. Indexes: held_pkey, held_key_hash_seq.
with patience as materialized (
  select set_config('lock_timeout', '300ms', true) as set
), found as materialized (
  select h.seq
  from outbox.held h
  where (select p.set is not null from patience p) and h.seq > $8 and h.seq <= $9
    and ($1::uuid is null or h.id = $1)
    and ($2::text is null or h.topic like $2)
    and ($3::text is null or h.state = $3)
    and ($4::text is null or h.reason = $4)
    and ($5::bigint is null or h.key_hash = $5)
    and ($6::bigint is null or h.held_at <= clock_timestamp() - make_interval(secs => $6 / 1000000.0))
    and ($7::bigint is null or h.held_at > clock_timestamp() - make_interval(secs => $7 / 1000000.0))
  order by h.seq desc
  limit $10
  for update
), discarded as (
  delete from outbox.held h using found f where h.seq = f.seq
  returning h.id, h.seq, h.topic, h.key_hash, h.reason
), keys as materialized (
  select d.key_hash, min(d.seq) as first from discarded d where d.key_hash is not null group by d.key_hash
), next as materialized (
  select n.seq, n.state, k.first
  from keys k
  cross join lateral (
    select h.seq, h.state
    from outbox.held h
    where h.key_hash = k.key_hash and h.seq not in (select d.seq from discarded d)
    order by h.key_hash, h.seq
    limit 1
  ) n
), due as (
  update outbox.held h
  set state = 'retry', due_at = clock_timestamp()
  from next n
  where h.seq = n.seq and n.seq > n.first and n.state = 'behind'
), audited as (
  insert into outbox.held_action (kind, id, seq, topic, reason_held, correlation_id, who, why)
  select 'discard', d.id, d.seq, d.topic, d.reason, e.correlation_id, $11, $12
  from discarded d left join outbox.envelope e on e.seq = d.seq
)
select count(*) as found, (select count(*) from discarded) as done, min(f.seq) as reached from found f
