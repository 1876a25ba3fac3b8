-- Stores an edit of the held message with seq $1 and keeps who ($9) did it and why ($10), with what was changed ($11). $2: which of
-- $3 topic, $4 partition, $5 headers, $6 payload (NULL: as it was) count. $7: hash of destination and key, $8: whether it is due at once,
-- $12: where the message goes now, NULL: where it went before.
-- A message whose key is another one now leaves its followers: the next of them that only waited for it becomes due.
-- Runs in the transaction that has locked the held row. Indexes: held_pkey, held_edit_pkey, held_key_hash_seq.
with before as materialized (
  select h.id, h.seq, h.topic, h.key_hash, h.reason from outbox.held h where h.seq = $1
), stored as (
  insert into outbox.held_edit as d (seq, edited, topic, partition, headers, payload)
  values ($1, $2, $3, $4, $5, $6)
  on conflict (seq) do update
  set edited = excluded.edited, topic = excluded.topic, partition = excluded.partition, headers = excluded.headers,
    payload = coalesce(excluded.payload, d.payload), edited_at = clock_timestamp()
), moved as (
  update outbox.held h
  set topic = coalesce($12, h.topic),
    -- What was skipped has no place in the order, and gets none.
    key_hash = case when $12::text is null or h.key_hash is null then h.key_hash else $7 end,
    state = case when $8 then 'retry' else 'parked' end,
    due_at = case when $8 then clock_timestamp() end
  where h.seq = $1
), next as materialized (
  select h.seq, h.state
  from before b join outbox.held h on h.key_hash = b.key_hash and h.seq <> b.seq
  where $12::text is not null and b.key_hash is distinct from $7
  order by h.seq
  limit 1
), due as (
  update outbox.held h
  set state = 'retry', due_at = clock_timestamp()
  from next n, before b
  where h.seq = n.seq and n.seq > b.seq and n.state = 'behind'
)
insert into outbox.held_action (kind, id, seq, topic, reason_held, correlation_id, who, why, details)
select 'edit', b.id, b.seq, b.topic, b.reason, e.correlation_id, $9, $10, $11
from before b left join outbox.envelope e on e.seq = b.seq
