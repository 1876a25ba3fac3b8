-- A message of which nothing is known; no row if it proves nothing: receipts of its time were purged, or an operator decided.
-- ?1 seq, ?2 receipts of before this time may be gone; NULL: none are
select m.id, m.topic, m.key, m.correlation_id
from outbox_message as m
where m.seq = ?1
  and (?2 is null or m.created_at > ?2)
  and not exists (select 1 from outbox_held as h where h.seq = m.seq)
  and not exists (select 1 from outbox_scheduled as s where s.seq = m.seq)
  and not exists (select 1 from outbox_held_action as a where a.seq = m.seq and a.kind in ('discard', 'cancel'))
