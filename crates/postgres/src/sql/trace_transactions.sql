-- Is a transaction open that explains why an intent is not to be seen? $1: its number (NULL: any that has written to the outbox). One object.
-- A transaction holds a lock on its own number; one that has written to outbox.message holds that lock too. Locks have 32 of a number's 64
-- bits: the rest is that of the number which is nearest to the snapshot's xmax. That is one past the highest that has ended, and not past
-- the highest that was given out: an open transaction may lie above it. What the relay itself deletes is left out.
-- pg_stat_activity shows the times and the state of other roles' backends to members of pg_read_all_stats alone.
with ended as materialized (
  select pg_snapshot_xmax(pg_current_snapshot())::text::numeric as xid
), open as materialized (
  select n.xid + mod(l.transactionid::text::numeric - mod(n.xid, 4294967296) + 6442450944, 4294967296) - 2147483648 as xid,
    l.pid, a.application_name, a.usename,
    coalesce(a.xact_start, p.prepared) as since, a.state, p.gid,
    exists (
      select from pg_catalog.pg_locks w
      where w.virtualtransaction = l.virtualtransaction and w.locktype = 'relation' and w.granted
        and w.relation = 'outbox.message'::regclass::oid and w.mode = 'RowExclusiveLock'
        and w.database = (select d.oid from pg_catalog.pg_database d where d.datname = pg_catalog.current_database())) as writes
  from pg_catalog.pg_locks l
  cross join ended n
  left join pg_catalog.pg_stat_activity a on a.pid = l.pid
  left join pg_catalog.pg_prepared_xacts p on p.transaction = l.transactionid
  where l.locktype = 'transactionid' and l.granted and l.mode = 'ExclusiveLock'
    -- A savepoint has a number of its own; what is written carries that of the whole.
    and coalesce(l.transactionid = a.backend_xid, true)
)
select jsonb_build_object(
  'status', case
    when $1::text is null then null
    when exists (select from open o where o.xid = $1::text::numeric) then 'in progress'
    when $1::text::numeric >= (select n.xid from ended n) then 'future'
    else coalesce(pg_xact_status($1::text::xid8), 'forgotten') end,
  'open', (
    select coalesce(jsonb_agg(jsonb_build_object('xid', o.xid::text, 'backend', o.pid, 'application', o.application_name, 'role', o.usename,
      'since', o.since, 'state', o.state, 'prepared', o.gid, 'writes_outbox', o.writes) order by o.xid), '[]')
    -- The one that was asked for stands before older ones, of which there may be more than are shown.
    from (
      select * from open o
      where o.writes and coalesce(o.application_name, '') not like 'outboxd %' or o.xid = $1::text::numeric
      order by (o.xid = $1::text::numeric) desc nulls last, o.xid limit 20) o)) as transactions
