-- What stands in the catalog where the outbox should be? Needs no grant. No row: there is no outbox in this schema.
select
  m.oid::regclass::text as message_table,
  -- Names of the indexes that the page needs and that are not there, or not valid.
  (select pg_catalog.string_agg(wanted.name, ', ' order by wanted.name)
   from pg_catalog.unnest(array['message_pkey', 'message_xid_seq']) as wanted(name)
   where not exists (
     select from pg_catalog.pg_index i join pg_catalog.pg_class x on x.oid = i.indexrelid
     where i.indrelid = m.oid and x.relname = wanted.name and i.indisvalid)) as missing_indexes,
  -- Row security without a policy that shows everything hides rows in silence.
  not pg_catalog.row_security_active(m.oid) or exists (
    select from pg_catalog.pg_policy p
    where p.polrelid = m.oid and p.polpermissive and p.polcmd in ('r', '*')
      and (p.polroles = '{0}' or exists (
        select from pg_catalog.unnest(p.polroles) as r(role) where pg_catalog.pg_has_role(r.role, 'usage')))
      and pg_catalog.pg_get_expr(p.polqual, p.polrelid) = 'true'
  ) as sees_every_row,
  pg_catalog.has_table_privilege(m.oid, 'insert') or pg_catalog.has_any_column_privilege(m.oid, 'update') as may_alter_intents,
  q.seqcache as sequence_cache
from pg_catalog.pg_class m
join pg_catalog.pg_namespace n on n.oid = m.relnamespace
-- The identity's sequence. pg_get_serial_sequence() would need a right to the schema.
left join pg_catalog.pg_depend d
  on d.classid = 'pg_class'::regclass and d.refclassid = 'pg_class'::regclass and d.refobjid = m.oid and d.refobjsubid > 0 and d.deptype = 'i'
left join pg_catalog.pg_sequence q on q.seqrelid = d.objid
where n.nspname = 'outbox'::name and m.relname = 'message'
