-- Do cursor, sequence and cluster belong together? Needs the relay's grants.
select
  outbox.max_message_bytes() as max_message_bytes,
  c.high,
  -- NULL: never used.
  pg_catalog.pg_sequence_last_value(q.seqrelid) as sequence_last,
  q.seqrelid::regclass::text as sequence_name,
  (select m.seq from outbox.message m order by m.seq desc limit 1) as seq_max,
  c.system_identifier as settled_in,
  s.system_identifier as this_cluster,
  pg_catalog.pg_snapshot_xmax(c.seen) <= pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())
    and coalesce(pg_catalog.pg_snapshot_xmax(c.until) <= pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot()), true)
    as is_in_the_past
from outbox.cursor c
cross join pg_catalog.pg_control_system() s
left join pg_catalog.pg_sequence q
  on q.seqrelid = pg_catalog.pg_get_serial_sequence('outbox.message'::regclass::text, 'seq')::regclass
where c.singleton
