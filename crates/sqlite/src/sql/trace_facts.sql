-- What is known of these intents (?1, a JSON array of seqs)? One object a fact, all of one snapshot, but for receipts. ?2: undelivered messages
-- are counted so far.
-- Each part is a probe an intent: primary keys, outbox_held_key_hash_seq (the head of its key), outbox_held_action_seq. The backlog is
-- counted from the cursor on. Terms are a row a leader: walked.
with asked as materialized (
  select m.seq, m.id, m.created_at from json_each(?1) as a cross join outbox_message as m on m.seq = a.value
), cursor as materialized (
  select high from outbox_cursor
), ahead as materialized (
  select b.seq, row_number() over (order by b.seq) - 1 as before
  from (
    select m.seq from outbox_message as m
    where m.seq > (select high from cursor) and m.seq <= (select max(seq) from asked)
    order by m.seq limit ?2
  ) as b
), terms as materialized (
  select t.epoch, t.relay, t.led_at, t.ended_at,
    lead(t.led_at) over (order by t.epoch) as next_led_at, lead(t.high) over (order by t.epoch) as next_high
  from outbox_term as t
)
select json_object('place', json_object('seq', a.seq,
  'dealt_with', json(iif(a.seq <= (select high from cursor), 'true', 'false')), 'late', json('false'), 'before', b.before)) as fact
from asked as a
left join ahead as b on b.seq = a.seq
union all
select json_object('held', json_object('seq', h.seq, 'topic', h.topic, 'state', h.state, 'reason', h.reason, 'error', h.error,
  'attempts', h.attempts, 'failures', json(h.failures), 'due_at', h.due_at, 'held_at', h.held_at, 'dead_letter', h.dead_letter,
  'head', (
    select json_object('seq', f.seq, 'id', f.id, 'state', f.state, 'reason', f.reason)
    from outbox_held as f where f.key_hash = h.key_hash and f.seq < h.seq order by f.seq limit 1)))
from asked as a
cross join outbox_held as h on h.seq = a.seq
union all
select json_object('was_held', json_object('seq', w.seq, 'state', w.state, 'reason', w.reason, 'attempts', w.attempts,
  'failures', json(w.failures), 'held_at', w.held_at, 'ended_at', w.ended_at, 'dead_letter', w.dead_letter))
from asked as a
cross join outbox_hold_history as w on w.seq = a.seq
union all
select json_object('action', json_object('seq', o.seq, 'at', o.at, 'kind', o.kind, 'who', o.who, 'why', o.why, 'details', json(o.details)))
from asked as a
cross join outbox_held_action as o on o.seq = a.seq
union all
select json_object('scheduled', json_object('seq', s.seq, 'due_at', s.due_at, 'scheduled_at', s.scheduled_at))
from asked as a
cross join outbox_scheduled as s on s.seq = a.seq
union all
-- An id may be used again after it was cancelled.
select json_object('cancelled', json_object('seq', a.seq, 'cancelled_at', t.cancelled_at, 'who', t.who, 'why', t.why))
from asked as a
cross join outbox_cancelled as t on t.id = a.id and t.cancelled_at >= a.created_at
union all
select json_object('term', json_object('epoch', t.epoch, 'relay', t.relay, 'led_at', t.led_at, 'next_led_at', t.next_led_at,
  'next_high', t.next_high))
from terms as t
where t.ended_at is null and t.next_led_at > (select min(created_at) from asked)
union all
select json_object('rewind', json_object('at', r.at, 'epoch', r.epoch, 'relay', r.relay, 'reason', r.reason, 'seq_first', r.seq_first,
  'seq_last', r.seq_last, 'messages', r.messages))
from outbox_rewind as r
-- Index outbox_rewind_seq: those that ended before the first that is asked for are not looked at.
where r.seq_last >= (select min(seq) from asked) and exists (select 1 from asked as a where a.seq between r.seq_first and r.seq_last)
