-- Deletes terms and rewinds older than $2 microseconds, at most $1 of each, the oldest first; the last two terms stay. Walks
-- term_pkey and rewind_pkey from their beginning.
with terms as (
  delete from outbox.term t
  where t.epoch = any (array(
    select o.epoch
    from (select i.epoch, i.led_at from outbox.term i order by i.epoch limit $1) o
    where o.led_at < now() - make_interval(secs => $2 / 1000000.0)
      and o.epoch < (select max(n.epoch) - 1 from outbox.term n)
  ))
)
delete from outbox.rewind r
where r.rewind = any (array(
  select o.rewind
  from (select i.rewind, i.at from outbox.rewind i order by i.rewind limit $1) o
  where o.at < now() - make_interval(secs => $2 / 1000000.0)
))
