-- Makes the held message with id $1 due now and keeps who ($2) did it and why ($3). Its attempts stay charged. One statement, so
-- that nothing happens without its audit. Returns the seqs that are held under this id, and the id of the message that it waits behind: then
-- nothing was done, because a follower is never taken out of its order.
-- Indexes: held_id, held_key_hash_seq.
with found as materialized (
  -- The lock makes a settle that is under way come first.
  select h.seq, h.key_hash from outbox.held h where h.id = $1 and coalesce(h.seq = $4, true) order by h.seq for update
), target as (
  -- An application may have used an id twice: then nothing is done until one of them is named by its seq ($4).
  select f.seq, f.key_hash from found f where (select count(*) from found) = 1
), head as materialized (
  select h.id from target t join outbox.held h on h.key_hash = t.key_hash and h.seq < t.seq order by h.seq limit 1
), retried as (
  update outbox.held h
  -- What waits for its topic goes on doing so: it must be possible to send it elsewhere.
  set state = case when h.state = 'topic' then 'topic' else 'retry' end, due_at = pg_catalog.clock_timestamp()
  from target t
  where h.seq = t.seq and not exists (select from head)
  returning h.id, h.seq, h.topic, h.reason
), audited as (
  insert into outbox.held_action (kind, id, seq, topic, reason_held, correlation_id, who, why)
  select 'retry', r.id, r.seq, r.topic, r.reason, e.correlation_id, $2, $3
  from retried r left join outbox.envelope e on e.seq = r.seq
)
select array(select f.seq from found f order by f.seq) as seqs, (select head.id from head) as behind
