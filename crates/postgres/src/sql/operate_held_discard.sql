-- Gives the held message with id $1 up for good and keeps who ($2) did it and why ($3). The intent stays until it is purged.
-- If it was the first of its key, the next one that only waited for it becomes due. One statement, so that nothing happens
-- without its audit. Returns the seqs that were held under this id.
-- Indexes: held_id, held_key_hash_seq.
with found as materialized (
  select h.seq from outbox.held h where h.id = $1 and coalesce(h.seq = $4, true) order by h.seq for update
), target as (
  -- An application may have used an id twice: then nothing is done until one of them is named by its seq ($4).
  select f.seq from found f where (select count(*) from found) = 1
), discarded as (
  delete from outbox.held h using target t where h.seq = t.seq
  returning h.id, h.seq, h.topic, h.key_hash, h.reason
), next as materialized (
  -- A follower of a message that is still held goes on waiting; so does one that was parked itself.
  select h.seq, h.state
  from discarded d join outbox.held h on h.key_hash = d.key_hash and h.seq <> d.seq
  order by h.seq
  limit 1
), due as (
  update outbox.held h
  set state = 'retry', due_at = pg_catalog.clock_timestamp()
  from next n, discarded d
  where h.seq = n.seq and n.seq > d.seq and n.state = 'behind'
), audited as (
  insert into outbox.held_action (kind, id, seq, topic, reason_held, correlation_id, who, why)
  select 'discard', d.id, d.seq, d.topic, d.reason, e.correlation_id, $2, $3
  from discarded d left join outbox.envelope e on e.seq = d.seq
)
select array(select f.seq from found f order by f.seq) as seqs
