-- The held messages with an id as they would be published now: an edit is judged by it. An application may have used an id more than
-- once. `head`: the message that it waits behind; `max_message_bytes`: the largest message.
-- ?1 id, ?2 seq, NULL for any
select
  h.seq, h.topic as held_topic, h.key_hash, h.reason,
  coalesce(h.state = 'retry' and h.due_at <= strftime('%Y-%m-%dT%H:%M:%fZ', 'now'), false) as is_due,
  (select f.id from outbox_held as f where f.key_hash = h.key_hash and f.seq < h.seq order by f.seq limit 1) as head,
  m.key, m.correlation_id, coalesce(d.edited, '[]') as edited,
  case when d.edited like '%"topic"%' then d.topic else m.topic end as topic,
  case when d.edited like '%"partition"%' then d.partition else m.partition end as partition,
  case when d.edited like '%"headers"%' then d.headers else m.headers end as headers,
  octet_length(case when d.edited like '%"payload"%' then d.payload else m.payload end) as payload_bytes,
  coalesce(octet_length(m.correlation_id), 0) + coalesce(octet_length(m.causation_id), 0) + coalesce(octet_length(m.content_type), 0)
    + coalesce(octet_length(m.traceparent), 0) + coalesce(octet_length(m.tracestate), 0) as other_bytes,
  (select max_message_bytes from outbox_setting) as max_message_bytes
from outbox_held as h
cross join outbox_message as m on m.seq = h.seq
left join outbox_held_edit as d on d.seq = h.seq
where h.id = ?1 and (?2 is null or h.seq = ?2)
order by h.seq
