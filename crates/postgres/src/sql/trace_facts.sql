-- What is known of these intents ($1, by seq)? One object a fact, all of one snapshot, but for receipts. $2: undelivered messages are
-- counted so far.
-- Each part is a probe an intent: held_pkey, held_key_hash_seq (the head of its key), hold_history_pkey, held_action_seq,
-- scheduled_pkey, cancelled_pkey. The backlog is counted from the cursor on, message_pkey alone. Terms are a row a leader: walked.
with asked as materialized (
  select m.seq, m.id, m.xid, m.created_at from outbox.message m where m.seq = any ($1::bigint[])
), cursor as materialized (
  select c.high, c.seen, coalesce(c.pos, -9223372036854775808) as pos, c.until from outbox.cursor c where c.singleton
), ahead as materialized (
  select b.seq, row_number() over (order by b.seq) - 1 as before
  from (
    select m.seq from outbox.message m
    where m.seq > (select c.high from cursor c) and m.seq <= (select max(a.seq) from asked a)
    order by m.seq limit $2
  ) b
), terms as materialized (
  select t.epoch, t.relay, t.led_at, t.ended_at,
    lead(t.led_at) over (order by t.epoch) as next_led_at, lead(t.high) over (order by t.epoch) as next_high
  from outbox.term t
)
select jsonb_build_object('place', jsonb_build_object('seq', a.seq,
  'dealt_with', d.dealt_with, 'late', a.seq <= c.high and not d.dealt_with, 'before', b.before)) as fact
from asked a
cross join cursor c
cross join lateral (
  select a.seq <= c.high and pg_visible_in_snapshot(a.xid, c.seen)
    or coalesce(a.seq <= c.pos and pg_visible_in_snapshot(a.xid, c.until), false) as dealt_with) d
left join ahead b on b.seq = a.seq
union all
select jsonb_build_object('held', to_jsonb(h) || jsonb_build_object('head', to_jsonb(k)))
from outbox.held h
-- The row of its key, or of the next one: in these words only held_key_hash_seq serves.
left join lateral (
  select f.seq, f.id, f.state, f.reason, f.key_hash
  from outbox.held f
  where (f.key_hash, f.seq) >= (h.key_hash, -9223372036854775808)
  order by f.key_hash, f.seq
  limit 1
) k on k.key_hash = h.key_hash and k.seq < h.seq
where h.seq = any ($1::bigint[])
union all
select jsonb_build_object('was_held', to_jsonb(w)) from outbox.hold_history w where w.seq = any ($1::bigint[])
union all
select jsonb_build_object('action', to_jsonb(o)) from outbox.held_action o where o.seq = any ($1::bigint[])
union all
select jsonb_build_object('scheduled', to_jsonb(s)) from outbox.scheduled s where s.seq = any ($1::bigint[])
union all
-- An id may be used again after it was cancelled. With its limit this is a probe an intent, and never a join that walks.
select jsonb_build_object('cancelled', to_jsonb(t) || jsonb_build_object('seq', a.seq))
from asked a
cross join lateral (select c.* from outbox.cancelled c where c.id = a.id and c.cancelled_at >= a.created_at limit 1) t
union all
select jsonb_build_object('term', to_jsonb(t))
from terms t
where t.ended_at is null and t.next_led_at > (select min(a.created_at) from asked a)
union all
select jsonb_build_object('rewind', to_jsonb(r))
from (
  select distinct f.*
  from asked a
  -- A return spans little: those that hold a place end within the next ones behind it. Index rewind_seq.
  cross join lateral (select w.* from outbox.rewind w where w.seq_last >= a.seq order by w.seq_last limit 100) f
  where f.seq_first <= a.seq
) r
