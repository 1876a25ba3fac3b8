-- May this role rebase, and who may? Needs no grant. No row: there is no outbox in this schema.
select
  current_user::text as role,
  pg_catalog.pg_get_userbyid(m.relowner)::text as owner,
  pg_catalog.pg_has_role(m.relowner, 'usage') as may
from pg_catalog.pg_class m
join pg_catalog.pg_namespace n on n.oid = m.relnamespace
where n.nspname = 'outbox'::name and m.relname = 'message'
