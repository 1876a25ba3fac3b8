-- Holds stranded messages, due at once, so that they are published in the order of their keys. Each is a line of the audit, whose
-- number tells the relay to count its keys again.
--
--   $1 epoch, $2 nonce   the term; no row: it is over. The lock keeps the next leader waiting until this is done.
--   $3 seq, $4 topic at Kafka, $5 key_hash   the messages
--
-- Asked again here, because an operator may have decided since they were found.
with term as materialized (
  select c.relay from outbox.cursor c where c.singleton and c.epoch = $1 and c.nonce = $2 for share
), stranded as (
  insert into outbox.held (seq, id, topic, key_hash, state, reason, due_at)
  select m.seq, m.id, f.topic, f.key_hash, 'retry', 'stranded', clock_timestamp()
  from term t
  cross join unnest($3::bigint[], $4::text[], $5::bigint[]) as f (seq, topic, key_hash)
  cross join lateral (select i.seq, i.id from outbox.message i where i.seq = f.seq) m
  where not exists (select from outbox.scheduled s where s.seq = f.seq)
    and not exists (select from outbox.held_action a where a.seq = f.seq and a.kind in ('discard', 'cancel'))
  on conflict (seq) do nothing
  returning seq, id, topic
), audited as (
  insert into outbox.held_action (kind, id, seq, topic, reason_held, correlation_id, who, why)
  select 'sweep', s.id, s.seq, s.topic, 'stranded', m.correlation_id, coalesce(t.relay, 'a relay'),
    'the cursor had passed it and nobody had delivered it'
  from stranded s
  cross join term t
  cross join lateral (select i.correlation_id from outbox.message i where i.seq = s.seq) m
), counted as (
  update outbox.sweep w set found = w.found + (select count(*) from stranded) from term t where w.singleton
)
select array(select s.seq from stranded s order by s.seq) as seqs, array(select s.id from stranded s order by s.seq) as ids,
  array(select i.correlation_id from stranded s join outbox.message i on i.seq = s.seq order by s.seq) as correlation_ids
from term t
