-- Forgets what was handled more than ?1 seconds ago and of which no copy came since, at most ?2 rows. (inbox_handled_claimed_at)
delete from inbox_handled where (consumer, id) in (
  select consumer, id from inbox_handled
  where claimed_at < strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '-' || ?1 || ' seconds')
    and (last_duplicate_at is null or last_duplicate_at < strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '-' || ?1 || ' seconds'))
  order by claimed_at limit ?2)
