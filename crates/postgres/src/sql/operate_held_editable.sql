-- The held message with id $1 (and seq $2, NULL: any) as it would be published now, locked: an edit is judged by it. An application may
-- have used an id twice. `head`: the message that it waits behind; `max_message_bytes`: the largest message.
-- Indexes: held_id, held_edit_pkey, held_key_hash_seq.
select h.seq, h.state, coalesce(h.state = 'retry' and h.due_at <= clock_timestamp(), false) as is_due,
  (select f.id from outbox.held f where f.key_hash = h.key_hash and f.seq < h.seq order by f.seq limit 1) as head,
  m.key, coalesce(d.edited, '{}') as edited,
  case when 'topic' = any (d.edited) then d.topic else m.topic end as topic,
  case when 'partition' = any (d.edited) then d.partition else m.partition end as partition,
  case when 'headers' = any (d.edited) then d.headers else m.headers end::text as headers,
  octet_length(case when 'payload' = any (d.edited) then d.payload else m.payload end) as payload_bytes,
  octet_length(m.correlation_id) + coalesce(octet_length(m.causation_id), 0) + coalesce(octet_length(m.content_type), 0)
    + coalesce(octet_length(m.traceparent), 0) + coalesce(octet_length(m.tracestate), 0) as other_bytes,
  outbox.max_message_bytes() as max_message_bytes
from outbox.held h
join outbox.message m on m.seq = h.seq
left join outbox.held_edit d on d.seq = h.seq
where h.id = $1 and ($2::bigint is null or h.seq = $2)
order by h.seq
for update of h
