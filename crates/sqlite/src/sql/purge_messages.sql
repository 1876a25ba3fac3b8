-- Deletes a step of intents that are dispatched and old, never one above the cursor, held or scheduled. A
-- scheduled one ages from its time on.
-- ?1 age in seconds, ?2 rows
-- The step looks at the first ?2 candidates by seq only: a younger one makes older ones behind it wait, never for long.
delete from outbox_message
where seq in (
  select seq
  from (
    select m.seq, max(m.created_at, coalesce(m.deliver_after, m.created_at)) as since
    from outbox_message as m
    where m.seq <= (select high from outbox_cursor)
      and not exists (select 1 from outbox_held as h where h.seq = m.seq)
      and not exists (select 1 from outbox_scheduled as s where s.seq = m.seq)
    order by m.seq
    limit ?2
  )
  where since < strftime('%Y-%m-%dT%H:%M:%fZ', 'now', printf('-%.3f seconds', ?1))
)
