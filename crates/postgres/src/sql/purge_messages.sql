-- Deletes dispatched intents older than $3 microseconds (a scheduled one ages from its time on) among the next $2 above $1. Dispatched: at or below high, seen by the
-- cursor's snapshot (without that, a late committer would be deleted before it is dispatched), neither held nor scheduled. A catch-up changes
-- nothing: what it has dealt with beyond that stays until the snapshot moves.
-- Walks message_pkey in small windows, so that a table in which nothing is old costs one window.
with cursor as materialized (
  select c.high, c.seen from outbox.cursor c where c.singleton
), scanned as materialized (
  select m.seq, m.xid, greatest(m.created_at, m.deliver_after) < now() - make_interval(secs => $3 / 1000000.0) as is_old
  from outbox.message m
  where m.seq > $1 and m.seq <= (select c.high from cursor c)
  order by m.seq
  limit $2
), purged as (
  delete from outbox.message m
  where m.seq = any (array(
    select s.seq
    from scanned s
    where s.is_old
      and pg_visible_in_snapshot(s.xid, (select c.seen from cursor c))
      and not exists (select from outbox.held h where h.seq = s.seq)
      and not exists (select from outbox.scheduled d where d.seq = s.seq)
  ))
  returning m.seq
), edits as (
  -- Kept until now, so that people know what was sent.
  delete from outbox.held_edit e where e.seq in (select p.seq from purged p)
), history as (
  delete from outbox.hold_history h where h.seq in (select p.seq from purged p)
)
select count(*) as scanned, coalesce(bool_or(s.is_old), false) as any_old, max(s.seq) as last, (select count(*) from purged) as purged
from scanned s
