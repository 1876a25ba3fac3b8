-- Which messages of a replay come next? No row: the term is over. replay NULL: none runs.
--
--   $1 epoch, $2 nonce    the term
--   $3 replay, $4 from    the one that is worked on, and behind which place it goes on; NULL: the oldest that runs, from where it stands
--   $5 rows               at most so many messages are looked at, of those that it names whether they are still there or not
--   $6 messages, $7 bytes the limits of what is read; at least one message
--
-- A replay of few messages names them (seqs): each is a probe of message_pkey. Otherwise message_pkey is walked in windows, so that a
-- condition that little meets costs many short statements and no long one. Indexes: replay_open, replay_pkey; those of the tables that
-- say what became of a message.
with term as materialized (
  select c.high, c.seen, c.pos, c.until from outbox.cursor c where c.singleton and c.epoch = $1 and c.nonce = $2
), task as materialized (
  select r.*, greatest(r.pos, coalesce($4, r.pos)) as above,
    -- Terms that got nowhere with it, if the last of them ended without a word.
    case when r.taken_epoch <> $1 and (select e.ended_at is null from outbox.term e where e.epoch = r.taken_epoch)
      then r.takes else 0 end as in_vain
  from outbox.replay r
  where r.replay = coalesce($3, (
      select o.replay from outbox.replay o where o.state in ('running', 'paused', 'stopped') and o.state = 'running' order by o.replay limit 1
    ))
    and r.state = 'running'
), named as materialized (
  select n.seq
  from task r
  cross join lateral unnest(r.seqs) as n (seq)
  where n.seq > r.above
  order by n.seq
  limit $5
), looked as materialized (
  select w.*
  from task r
  cross join lateral (
    select m.seq, m.xid, m.topic, m.key, m.correlation_id, m.created_at
    from outbox.message m
    where r.seqs is null and m.seq > r.above and m.seq <= r.seq_last
    order by m.seq
    limit $5
  ) w
  union all
  select w.*
  from named n
  cross join lateral (
    select m.seq, m.xid, m.topic, m.key, m.correlation_id, m.created_at
    from outbox.message m
    where m.seq = n.seq
    limit 1
  ) w
), met as materialized (
  select l.seq
  from task r
  cross join term t
  cross join looked l
  where (r.topic is null or l.topic like replace(replace(r.topic, '_', '\_'), '*', '%'))
    and (r.key is null or l.key = r.key)
    and (r.correlation_id is null or l.correlation_id = r.correlation_id)
    and (r.created_from is null or l.created_at >= r.created_from)
    and (r.created_before is null or l.created_at < r.created_before)
    -- Dispatched: the cursor has dealt with it,
    and (l.seq <= t.high and pg_visible_in_snapshot(l.xid, t.seen)
      or t.until is not null and l.seq <= t.pos and pg_visible_in_snapshot(l.xid, t.until))
), meant as materialized (
  -- and nothing else has become of it. Each a probe, of those that are left; as `exists` the tables would be hashed.
  select l.seq, row_number() over in_order as nth, sum(l.bytes) over in_order - l.bytes as bytes_before
  from (
    select k.seq, (
        select coalesce(octet_length(m.payload), 0) + coalesce(octet_length(m.key), 0) + coalesce(octet_length(m.headers::text), 0)
          + coalesce(octet_length(m.tracestate), 0)
        from outbox.message m
        where m.seq = k.seq
      ) as bytes
    from met k
  ) l
  where (select true from outbox.held h where h.seq = l.seq) is null
    and (select true from outbox.scheduled s where s.seq = l.seq) is null
    and (select true from outbox.held_action a where a.seq = l.seq and a.kind in ('discard', 'cancel') limit 1) is null
  window in_order as (order by l.seq rows unbounded preceding)
), taken as materialized (
  select m.seq from meant m where m.nth <= $6 and m.bytes_before < $7
), frame as materialized (
  select r.replay, r.who, r.to_topic, r.rate, r.total, r.pos as replay_pos, r.seq_last, r.in_vain,
    case
      when (select count(*) from taken) < (select count(*) from meant) then (select max(k.seq) from taken k)
      when r.seqs is null and (select count(*) from looked) >= $5 then (select max(l.seq) from looked l)
      when (select count(*) from named) >= $5 then (select max(n.seq) from named n)
      else r.seq_last
    end as reached,
    (extract(epoch from clock_timestamp()) * 1000000)::bigint as clock_us
  from term t left join task r on true
)
select f.*, m.seq, m.id,
  -- As it was published: with what an operator had edited.
  case when 'topic' = any (e.edited) then e.topic else m.topic end as topic,
  m.key,
  case when 'payload' = any (e.edited) then e.payload else m.payload end as payload,
  case when 'headers' = any (e.edited) then e.headers else m.headers end::text as headers,
  case when 'partition' = any (e.edited) then e.partition else m.partition end as partition,
  m.content_type, m.correlation_id, m.causation_id, m.traceparent, m.tracestate, m.created_at, m.deliver_after
from frame f
left join taken k on true
left join lateral (select i.* from outbox.message i where i.seq = k.seq limit 1) m on true
left join lateral (select i.* from outbox.held_edit i where i.seq = k.seq limit 1) e on true
order by k.seq
