-- The outbox at a glance: who leads, where the cursor stands, which schema is installed. $1: first key of the lock of the lead.
-- The lock says whether a relay is alive; epoch and name say which one took the lead last.
select
  pg_catalog.current_setting('server_version') as server_version,
  (select max(m.version) from outbox.migration m) as schema_version,
  c.epoch, c.relay, c.led_at, c.settled_at, c.high, c.seen::text as seen, c.pos, c.until::text as until, c.kafka_cluster,
  exists (
    select from pg_catalog.pg_locks l
    where l.locktype = 'advisory' and l.granted and l.objsubid = 2
      and l.classid = $1::bigint::oid and l.objid = 'outbox.message'::regclass::oid
      and l.database = (select d.oid from pg_catalog.pg_database d where d.datname = pg_catalog.current_database())
  ) as alive
from outbox.cursor c
where c.singleton
