-- Who keeps vacuum from removing dead rows? The oldest holder of an xmin first. A long transaction delays no message but its own;
-- it makes the cursor's old versions pile up, and with them every settle slower.
select holder.what, holder.xids, holder.seconds
from (
  select 'session ' || a.pid || coalesce(' of ' || a.usename, '') || coalesce(' (' || nullif(a.application_name, '') || ')', '')
      || coalesce(' in ' || a.datname, '') as what,
    greatest(pg_catalog.age(a.backend_xmin), pg_catalog.age(a.backend_xid)) as xids,
    extract(epoch from pg_catalog.clock_timestamp() - coalesce(a.xact_start, a.backend_start))::float8 as seconds
  from pg_catalog.pg_stat_activity a
  where (a.backend_xmin is not null or a.backend_xid is not null) and a.pid <> pg_catalog.pg_backend_pid()
    and a.backend_type not like 'autovacuum%'
  union all
  select 'prepared transaction ' || p.gid || ' in ' || p.database, pg_catalog.age(p.transaction),
    extract(epoch from pg_catalog.clock_timestamp() - p.prepared)::float8
  from pg_catalog.pg_prepared_xacts p
  union all
  select 'replication slot ' || s.slot_name || case when s.active then '' else ' (inactive)' end,
    greatest(pg_catalog.age(s.xmin), pg_catalog.age(s.catalog_xmin)), null
  from pg_catalog.pg_replication_slots s
  where s.xmin is not null or s.catalog_xmin is not null
) holder
order by holder.xids desc
limit 1
