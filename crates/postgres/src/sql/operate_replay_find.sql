-- One step of a search for dispatched messages: which are meant, of the next $9 above $7 and up to $8 (NULL: the cursor's high)?
-- Conditions, NULL means any: $1 ids, $2 correlation id, $3 topic (as LIKE has it), $4 key, $5 inserted from, $6 and before.
-- Walks message_pkey in windows: however many messages there are, no statement takes long.
with cursor as materialized (
  select c.high, c.seen, c.pos, c.until from outbox.cursor c where c.singleton
), span as materialized (
  select least(coalesce($8, c.high), c.high) as up_to from cursor c
), looked as materialized (
  select m.seq, m.xid, m.id, m.topic, m.key, m.correlation_id, m.created_at
  from outbox.message m
  where m.seq > $7 and m.seq <= (select s.up_to from span s)
  order by m.seq
  limit $9
), met as materialized (
  select l.seq
  from looked l
  cross join cursor c
  where ($1::uuid[] is null or l.id = any ($1))
    and ($2::text is null or l.correlation_id = $2)
    and ($3::text is null or l.topic like $3)
    and ($4::text is null or l.key = $4)
    and ($5::timestamptz is null or l.created_at >= $5)
    and ($6::timestamptz is null or l.created_at < $6)
    -- The same as the relay asks (replay_chunk.sql).
    and (l.seq <= c.high and pg_visible_in_snapshot(l.xid, c.seen)
      or c.until is not null and l.seq <= c.pos and pg_visible_in_snapshot(l.xid, c.until))
)
select
  s.up_to,
  (select count(*) from looked) as looked_at,
  case when (select count(*) from looked) >= $9 then (select max(l.seq) from looked l) else s.up_to end as reached,
  array(
    select l.seq
    from met l
    where (select true from outbox.held h where h.seq = l.seq) is null
      and (select true from outbox.scheduled d where d.seq = l.seq) is null
      and (select true from outbox.held_action a where a.seq = l.seq and a.kind in ('discard', 'cancel') limit 1) is null
    order by l.seq
  ) as seqs
from span s
