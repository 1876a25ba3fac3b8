-- Deletes rewinds older than ?1 seconds, at most ?2, the oldest first.
delete from outbox_rewind
where rewind in (select r.rewind from outbox_rewind as r order by r.rewind limit ?2)
  and at < strftime('%Y-%m-%dT%H:%M:%fZ', 'now', printf('-%.3f seconds', ?1))
