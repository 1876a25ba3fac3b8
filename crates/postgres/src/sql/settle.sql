-- Settles: moves the cursor and stores what happened on the way, all of it or nothing. No row: this relay is fenced.
--
--   $1 epoch, $2 nonce                                  the term
--   $3 high, $4 seen, $5 pos, $6 until                  the cursor that must still be stored
--   $7 high, $8 seen, $9 pos, $10 until, $11 bound      the cursor to store; bound NULL: not known any more
--   $12, $13                                            both cursors as text, for people
--   $14 out_of_order, $15 first, $16 last, $17 messages, $18 packed         receipts
--   $19 seq, $20 topic, $21 key_hash, $22 state, $23 reason, $24 error, $25 attempts, $26 due in microseconds      holds
--   $27                                                 held messages that were dispatched
--   $28 seq, $29 topic, $30 key_hash                    messages whose time has not come
--   $31                                                 dead_letter of the holds
--   $32 seq, $33 attempts                               the message whose attempt is started; NULL: none is
--   $34                                                 whether the term has got on
--
-- A concurrent leader's bump makes the update wait and then find nothing. Each held row is reached by its primary key.
with moved as (
  update outbox.cursor c
  set high = $7,
    seen = $8::text::pg_snapshot,
    pos = $9,
    until = $10::text::pg_snapshot,
    -- The bound belongs to high: whatever drew its seq before high was drawn had its xid before.
    xid_bound = case when c.high = $7 then c.xid_bound else coalesce($11::text::xid8, pg_current_xact_id()) end,
    settled_at = clock_timestamp(),
    trial_seq = $32,
    trials = $33,
    terms_unsettled = case when $34 then 0 else c.terms_unsettled end
  where c.singleton and c.epoch = $1 and c.nonce = $2
    and c.high = $3 and c.seen::text = $4 and c.pos is not distinct from $5 and c.until::text is not distinct from $6
  returning c.epoch, c.relay, c.settled_at
), receipts as (
  insert into outbox.receipt
    (epoch, relay, settled_at, out_of_order, cursor_before, cursor_after, seq_first, seq_last, messages, receipts)
  select m.epoch, m.relay, m.settled_at, r.out_of_order, $12, $13, r.seq_first, r.seq_last, r.messages, r.receipts
  from moved m
  cross join unnest($14::boolean[], $15::bigint[], $16::bigint[], $17::integer[], $18::bytea[])
    as r (out_of_order, seq_first, seq_last, messages, receipts)
), released as (
  delete from outbox.held h
  using moved m
  where h.seq = any ($27::bigint[])
  returning h.key_hash
), freed as materialized (
  -- A message that is parked under the policy `skip` holds its key back no longer. As of before this statement, so that the key is known.
  select h.key_hash
  from moved m
  cross join unnest($19::bigint[], $21::bigint[]) as n (seq, key_hash)
  cross join lateral (select o.key_hash from outbox.held o where o.seq = n.seq) h
  where h.key_hash is distinct from n.key_hash
), standing as materialized (
  -- Waits for an operator who is about to discard one of them: what is gone then does not come back.
  select o.seq
  from outbox.held o
  where o.seq = any ($19::bigint[]) and exists (select from moved)
  for update
), holds as (
  insert into outbox.held as h
    (seq, id, topic, key_hash, state, reason, error, attempts, failures, due_at, held_at, dead_letter)
  select n.seq, i.id, n.topic, n.key_hash, n.state, n.reason, n.error, n.attempts,
    case when n.error is null then '[]'::jsonb
      else jsonb_build_array(jsonb_build_object('at', m.settled_at, 'error', n.error)) end,
    m.settled_at + make_interval(secs => n.due_us / 1000000.0),
    m.settled_at,
    n.dead_letter
  from moved m
  cross join unnest($19::bigint[], $20::text[], $21::bigint[], $22::text[], $23::text[], $24::text[], $25::integer[], $26::bigint[],
      $31::text[])
    as n (seq, topic, key_hash, state, reason, error, attempts, due_us, dead_letter)
  cross join lateral (select i.id from outbox.message i where i.seq = n.seq) i
  -- Discarded by an operator while it was tried again: it stays so. Either the audit shows it, or this statement saw a row that was
  -- gone when it could be locked.
  where n.seq <> all (array(select a.seq from outbox.held_action a where a.seq = any ($19::bigint[]) and a.kind = 'discard'))
    and (n.seq = any (array(select s.seq from standing s))
      or n.seq <> all (array(select o.seq from outbox.held o where o.seq = any ($19::bigint[]))))
  on conflict (seq) do update
  set topic = excluded.topic,
    key_hash = excluded.key_hash,
    state = excluded.state,
    reason = excluded.reason,
    error = coalesce(excluded.error, h.error),
    attempts = excluded.attempts,
    due_at = excluded.due_at,
    dead_letter = coalesce(excluded.dead_letter, h.dead_letter),
    -- The last ten: one came, so at most one goes.
    failures = case when jsonb_array_length(h.failures || excluded.failures) > 10
      then (h.failures || excluded.failures) - 0 else h.failures || excluded.failures end
), scheduled as (
  insert into outbox.scheduled (seq, id, topic, key_hash, due_at, scheduled_at)
  select n.seq, i.id, n.topic, n.key_hash, i.deliver_after, m.settled_at
  from moved m
  cross join unnest($28::bigint[], $29::text[], $30::bigint[]) as n (seq, topic, key_hash)
  cross join lateral (select i.id, i.deliver_after from outbox.message i where i.seq = n.seq) i
)
select
  array(
    select r.key_hash from released r where r.key_hash is not null
    union
    select f.key_hash from freed f where f.key_hash is not null
  ) as keys_released
from moved m
