-- Deletes terms older than ?1 seconds, at most ?2, the oldest first; the last two stay.
delete from outbox_term
where epoch in (select t.epoch from outbox_term as t order by t.epoch limit ?2)
  and led_at < strftime('%Y-%m-%dT%H:%M:%fZ', 'now', printf('-%.3f seconds', ?1))
  and epoch < (select max(n.epoch) - 1 from outbox_term as n)
