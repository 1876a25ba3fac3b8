-- Has the outbox been installed here at all?
select exists (
  select from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
  where n.nspname = 'outbox'::name and c.relname = 'migration')
