-- May this outbox be served? Asked before the lead is taken; any answer that is not as it should be refuses the lead. One row, also
-- if the cursor is missing. One row each of the catalog and the cursor, and the last message by message_pkey.
select
  (select max(m.version) from outbox.migration m) as schema_version,
  current_setting('server_encoding') as encoding,
  c.high,
  coalesce(c.system_identifier = (select s.system_identifier from pg_control_system() s), true) as is_same_cluster,
  -- A snapshot ahead of the server was taken somewhere else.
  coalesce(
    pg_snapshot_xmax(c.seen) <= pg_snapshot_xmax(pg_current_snapshot())
      and coalesce(pg_snapshot_xmax(c.until) <= pg_snapshot_xmax(pg_current_snapshot()), true),
    true) as is_in_the_past,
  q.seqcache as sequence_cache,
  -- NULL: never used, or this role may not look.
  case when has_sequence_privilege(q.seqrelid, 'select') then pg_sequence_last_value(q.seqrelid) end as sequence_last,
  has_sequence_privilege(q.seqrelid, 'select') as sequence_is_readable,
  q.seqrelid::regclass::text as sequence_name,
  (select m.seq from outbox.message m order by m.seq desc limit 1) as seq_max
from (select) one
left join outbox.cursor c on c.singleton
left join pg_sequence q on q.seqrelid = pg_get_serial_sequence('outbox.message'::regclass::text, 'seq')::regclass
