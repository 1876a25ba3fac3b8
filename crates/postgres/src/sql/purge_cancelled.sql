-- Deletes cancellations older than $2 microseconds, at most $1, whose intent is gone: until then they say what became of it.
-- message_scheduled_id serves the probe; the table itself is as small as what was cancelled.
delete from outbox.cancelled c
where c.id = any (array(
  select o.id
  from outbox.cancelled o
  where o.cancelled_at < now() - make_interval(secs => $2 / 1000000.0)
    and not exists (select from outbox.message m where m.id = o.id and m.deliver_after is not null)
  limit $1
))
