-- Makes scheduled messages whose time has come held ones, at most $3 of them, earliest first: due, if nothing of their key is held, else
-- behind what is. Those that were cancelled go into the audit instead; each commit of a cancellation before the message's time is seen
-- here, because that time has passed before this statement's snapshot is taken. $1 epoch, $2 nonce: the term. No row: this relay is
-- fenced (the lock makes the next leader wait, so that what it counts includes these).
-- scheduled_due serves the choice, cancelled_pkey and held_key_hash_seq a probe a message.
with fence as materialized (
  select c.epoch from outbox.cursor c where c.singleton and c.epoch = $1 and c.nonce = $2 for share
), due as materialized (
  select s.seq, s.id, s.topic, s.key_hash, c.who, c.why,
    coalesce(
      (select h.key_hash = s.key_hash
       from outbox.held h
       where (h.key_hash, h.seq) >= (s.key_hash, -9223372036854775808)
       order by h.key_hash, h.seq
       limit 1),
      false) as is_behind
  from (
    select d.* from outbox.scheduled d where d.due_at <= now() and exists (select from fence) order by d.due_at, d.seq limit $3
  ) s
  left join outbox.cancelled c
    -- An id may be used again after it was cancelled.
    on c.id = s.id and c.cancelled_at >= (select m.created_at from outbox.message m where m.seq = s.seq)
), gone as (
  delete from outbox.scheduled s where s.seq = any (array(select d.seq from due d))
), audited as (
  insert into outbox.held_action (kind, id, seq, topic, reason_held, correlation_id, who, why)
  select 'cancel', d.id, d.seq, d.topic, 'scheduled', m.correlation_id, d.who, d.why
  from due d
  cross join lateral (select m.correlation_id from outbox.message m where m.seq = d.seq) m
  where d.who is not null
), promoted as (
  insert into outbox.held (seq, id, topic, key_hash, state, reason, due_at)
  select d.seq, d.id, d.topic, d.key_hash,
    case when d.is_behind then 'behind' else 'retry' end,
    case when d.is_behind then 'behind' else 'scheduled' end,
    case when d.is_behind then null else now() end
  from due d
  where d.who is null
)
select
  (select count(*) from due) as taken,
  coalesce((select array_agg(d.key_hash) from due d where d.who is null and d.key_hash is not null), '{}') as keys,
  coalesce((select array_agg(distinct d.key_hash) from due d where d.who is null and d.is_behind), '{}') as behind
from fence
