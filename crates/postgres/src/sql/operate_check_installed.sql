-- What stands in the catalog where the outbox should be? Needs no grant. No row: there is no outbox in this schema.
select
  m.oid::regclass::text as message_table,
  -- Names of the indexes that the relay's statements need and that are not there, not valid, or on something else.
  (select pg_catalog.string_agg(wanted.name, ', ' order by wanted.name)
   from (values
     ('message', 'message_pkey', 'btree (seq)'),
     ('message', 'message_xid_seq', 'btree (xid, seq)'),
     ('held', 'held_pkey', 'btree (seq)'),
     ('held', 'held_key_hash_seq', 'btree (key_hash, seq)'),
     ('held', 'held_topic_due', 'btree (topic, due_at) WHERE '),
     ('held', 'held_topic_seq', 'btree (topic, seq) WHERE ')) as wanted(relation, name, on_what)
   where not exists (
     select
     from pg_catalog.pg_class t
     join pg_catalog.pg_index i on i.indrelid = t.oid
     join pg_catalog.pg_class x on x.oid = i.indexrelid
     where t.relnamespace = m.relnamespace and t.relname = wanted.relation and x.relname = wanted.name and i.indisvalid
       -- A WHERE is not compared: servers write it in their own ways.
       and case when i.indpred is null
         then pg_catalog.split_part(pg_catalog.pg_get_indexdef(x.oid), ' USING ', 2) = wanted.on_what
         else pg_catalog.starts_with(pg_catalog.split_part(pg_catalog.pg_get_indexdef(x.oid), ' USING ', 2), wanted.on_what)
       end)) as missing_indexes,
  -- Fills in what ORMs send as NULL. Enabled for sessions that replicate nothing.
  exists (
    select from pg_catalog.pg_trigger g where g.tgrelid = m.oid and g.tgname = 'fill_in' and g.tgenabled in ('O', 'A')
  ) as fills_in,
  pg_catalog.has_table_privilege(m.oid, 'insert') or pg_catalog.has_any_column_privilege(m.oid, 'update') as may_alter_intents,
  q.seqcache as sequence_cache
from pg_catalog.pg_class m
join pg_catalog.pg_namespace n on n.oid = m.relnamespace
-- The identity's sequence. pg_get_serial_sequence() would need a right to the schema.
left join pg_catalog.pg_depend d
  on d.classid = 'pg_class'::regclass and d.refclassid = 'pg_class'::regclass and d.refobjid = m.oid and d.refobjsubid > 0 and d.deptype = 'i'
left join pg_catalog.pg_sequence q on q.seqrelid = d.objid
where n.nspname = 'outbox'::name and m.relname = 'message'
