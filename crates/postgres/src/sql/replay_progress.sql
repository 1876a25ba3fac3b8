-- A replay ($3) stood at $4 and stands at $5 now. Without receipts and at the same place: it is taken up. No row: it stands elsewhere, or the term is over (has_term says which).
--
--   $1 epoch, $2 nonce                                         the term
--   $6 first, $7 last, $8 messages, $9 packed                  receipts of the copies
--   $10 state that it takes if it is still running, $11 error, $12 seq, $13 id     why it is stopped
--
-- The row is compared and swapped: what an earlier leader writes late finds another place there and changes nothing. One that was paused
-- or cancelled meanwhile stays so; what was published before that is written down all the same. Index: replay_pkey.
with term as materialized (
  select c.epoch, c.relay, c.high || '@' || c.seen::text as place from outbox.cursor c where c.singleton and c.epoch = $1 and c.nonce = $2
), moved as (
  update outbox.replay r
  set pos = $5,
    published = r.published + (select coalesce(sum(n.messages), 0) from unnest($8::integer[]) as n (messages)),
    state = case when r.state = 'running' then $10 else r.state end,
    error = case when r.state = 'running' then $11 else r.error end,
    stopped_seq = case when r.state = 'running' then $12 else r.stopped_seq end,
    stopped_id = case when r.state = 'running' then $13 else r.stopped_id end,
    taken_epoch = t.epoch,
    takes = case
      when cardinality($8::integer[]) > 0 then 0
      when r.taken_epoch = t.epoch then r.takes
      when (select e.ended_at is null from outbox.term e where e.epoch = r.taken_epoch) then r.takes + 1
      else 1
    end,
    changed_at = clock_timestamp()
  from term t
  where r.replay = $3 and r.pos = $4
  returning r.replay, r.state, r.changed_at
), receipts as (
  -- Out of order: their range overlaps that of the messages themselves.
  insert into outbox.receipt
    (epoch, relay, settled_at, out_of_order, cursor_before, cursor_after, seq_first, seq_last, messages, receipts, replay)
  select t.epoch, t.relay, m.changed_at, true, t.place, t.place, n.seq_first, n.seq_last, n.messages, n.receipts, m.replay
  from moved m
  cross join term t
  cross join unnest($6::bigint[], $7::bigint[], $8::integer[], $9::bytea[]) as n (seq_first, seq_last, messages, receipts)
)
select exists (select from term) as has_term, (select m.state from moved m) as state
