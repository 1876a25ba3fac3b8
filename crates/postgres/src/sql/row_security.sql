-- From which tables of the outbox does row security hide rows from this role, in silence? No row: from none. Needs no grant.
-- A table is seen as a whole if a permissive policy for this role shows everything and no restrictive one takes some of it away.
-- The relay's own tables need a policy for every command; intents and migrations it reads.
with policy as (
  select p.polrelid, p.polname, p.polpermissive, p.polcmd,
    coalesce(pg_catalog.pg_get_expr(p.polqual, p.polrelid), 'true') = 'true'
      and coalesce(pg_catalog.pg_get_expr(p.polwithcheck, p.polrelid), 'true') = 'true' as is_open
  from pg_catalog.pg_policy p
  where p.polroles = '{0}' or exists (
    select from pg_catalog.unnest(p.polroles) as r(role) where pg_catalog.pg_has_role(r.role, 'usage'))
)
select c.oid::pg_catalog.regclass::text as table_name, pg_catalog.quote_ident(current_user) as role, r.restrictive
from pg_catalog.pg_class c
join pg_catalog.pg_namespace n on n.oid = c.relnamespace
cross join lateral (
  select pg_catalog.string_agg(pg_catalog.quote_ident(p.polname), ', ' order by p.polname) as restrictive
  from policy p
  where p.polrelid = c.oid and not p.polpermissive and not p.is_open
    and (p.polcmd in ('r', '*') or c.relname not in ('message', 'migration'))
) r
where n.nspname = 'outbox'::name
  and c.relname in ('message', 'cursor', 'held', 'held_action', 'held_edit', 'scheduled', 'cancelled', 'receipt', 'sweep', 'operation', 'hold_history',
    'term', 'rewind', 'replay', 'migration')
  and pg_catalog.row_security_active(c.oid)
  and (r.restrictive is not null or not exists (
    select from policy p
    where p.polrelid = c.oid and p.polpermissive and p.is_open
      and (p.polcmd = '*' or p.polcmd = 'r' and c.relname in ('message', 'migration'))))
order by c.relname
