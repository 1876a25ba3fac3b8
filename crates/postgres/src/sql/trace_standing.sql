-- The outbox at the moment of a question: who leads, when it settled last, from when on receipts are there, and which of the optional
-- indexes of trace can be used. $1: first key of the lock of the lead. One object.
-- Each part is one probe: cursor_pkey, term_pkey, rewind_pkey from its end, receipt_settled_at from its beginning.
select jsonb_build_object(
  'now', clock_timestamp(),
  'epoch', c.epoch,
  'relay', c.relay,
  'led_at', c.led_at,
  'settled_at', c.settled_at,
  'alive', exists (
    select from pg_catalog.pg_locks l
    where l.locktype = 'advisory' and l.granted and l.objsubid = 2
      and l.classid = $1::bigint::oid and l.objid = 'outbox.message'::regclass::oid
      and l.database = (select d.oid from pg_catalog.pg_database d where d.datname = pg_catalog.current_database())),
  'ended_at', (select t.ended_at from outbox.term t where t.epoch = c.epoch),
  -- Receipts are purged by age, the oldest first. The very first one began at nothing: then none is missing.
  'receipts_since', (
    select case when (select starts_with(f.cursor_before, '0@') from outbox.receipt f order by f.receipt limit 1)
      then '1970-01-01 00:00:00+00' else o.settled_at end
    from outbox.receipt o order by o.settled_at limit 1),
  'outage_at', (select r.at from outbox.rewind r where r.reason = 'outage' order by r.rewind desc limit 1),
  'indexes', (
    select coalesce(jsonb_agg(n.word), '[]')
    from (values ('message_id', 'id'), ('message_correlation', 'correlation'), ('message_causation', 'causation'),
      ('message_trace', 'trace'), ('message_key', 'key')) as n (name, word)
    join pg_catalog.pg_class k on k.relname = n.name
    join pg_catalog.pg_index i on i.indexrelid = k.oid and i.indrelid = 'outbox.message'::regclass and i.indisvalid),
  'table_bytes', pg_catalog.pg_relation_size('outbox.message'::regclass)) as standing
from outbox.cursor c
where c.singleton
