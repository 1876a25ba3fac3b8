-- Deletes cancellations older than ?1 seconds, at most ?2, whose intent is gone: until then they say what became of it.
delete from outbox_cancelled
where rowid in (
  select c.rowid
  from outbox_cancelled as c
  where c.cancelled_at < strftime('%Y-%m-%dT%H:%M:%fZ', 'now', printf('-%.3f seconds', ?1))
    and not exists (select 1 from outbox_message as m where m.id = c.id and m.deliver_after is not null)
  limit ?2
)
