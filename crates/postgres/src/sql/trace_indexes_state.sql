-- Which of the indexes that trace uses are there, and does a query use them? Needs no grant. An index that is not valid is being built, and then
-- its builder is told, or is what an interrupted build left. Of another role's builds it is seen only that there is one, hence the coalesce.
-- $1 their names
select x.relname::text as name, i.indisvalid as valid,
  (select pg_catalog.min(p.pid)
   from pg_catalog.pg_stat_progress_create_index p
   where p.datname = pg_catalog.current_database() and coalesce(p.relid, m.oid) = m.oid) as builder
from pg_catalog.pg_class m
join pg_catalog.pg_namespace n on n.oid = m.relnamespace
join pg_catalog.pg_index i on i.indrelid = m.oid
join pg_catalog.pg_class x on x.oid = i.indexrelid
where n.nspname = 'outbox'::name and m.relname = 'message' and x.relname = any($1)
