-- What is undelivered? Late messages and those above high are counted exactly up to $1 of each; beyond, the distance to the
-- highest visible seq is an upper estimate. The oldest is sought among the same, and among the first held ones.
-- A scheduled intent's age counts from its time on.
-- The late half has the shape of read_page.sql and needs the same indexes.
with recursive
  cursor as materialized (
    select c.high, c.seen, coalesce(c.pos, -9223372036854775808) as pos, c.until, c.xid_bound from outbox.cursor c where c.singleton
  ),
  younger (xid) as (
    (select m.xid
     from outbox.message m
     where m.xid >= (select pg_snapshot_xmax(c.seen) from cursor c) and m.xid < (select c.xid_bound from cursor c)
     order by m.xid
     limit 1)
    union all
    select (select m.xid from outbox.message m where m.xid > y.xid and m.xid < (select c.xid_bound from cursor c) order by m.xid limit 1)
    from younger y
    where y.xid is not null
  ),
  unseen (xid) as (
    select x.xid from cursor c cross join lateral pg_snapshot_xip(c.seen) x (xid)
    union all
    select y.xid from younger y where y.xid is not null
  ),
  late as materialized (
    select m.since
    from cursor c
    cross join unseen u
    cross join lateral (
      select greatest(m.created_at, m.deliver_after) as since
      from outbox.message m
      -- What a catch-up has dealt with is what `until` sees up to pos.
      where (m.xid, m.seq) > (u.xid, case when pg_visible_in_snapshot(u.xid, c.until) then c.pos else -9223372036854775808 end)
        and (m.xid, m.seq) <= (u.xid, c.high)
      order by m.xid, m.seq
      limit $1
    ) m
    limit $1
  ),
  rest as materialized (
    select greatest(m.created_at, m.deliver_after) as since
    from outbox.message m
    where m.seq > (select c.high from cursor c)
    order by m.seq
    limit $1
  )
select
  (select count(*) from late)
    + case when (select count(*) from rest) < $1 then (select count(*) from rest)
      else greatest($1, (select m.seq from outbox.message m order by m.seq desc limit 1) - (select c.high from cursor c)) end
    as messages,
  (extract(epoch from greatest(
    clock_timestamp() - least(
      (select min(l.since) from late l),
      (select min(r.since) from rest r),
      (select min(greatest(m.created_at, m.deliver_after))
       from (select h.seq from outbox.held h order by h.seq limit 100) h
       cross join lateral (select m.created_at, m.deliver_after from outbox.message m where m.seq = h.seq) m),
      (select s.due_at from outbox.scheduled s order by s.due_at limit 1)),
    interval '0')) * 1000000)::bigint as oldest_age_us,
  (select count(*) from (select from outbox.scheduled s where s.due_at > now() order by s.due_at limit $1) first) as scheduled
