-- What does the cursor speak of, and where is the outbox now? Also: how many messages there are, and may this role rebase. Reads the
-- whole table once, by message_pkey.
select
  c.high, c.seen::text as seen, c.pos, c.until::text as until, c.settled_at, c.relay, c.kafka_cluster,
  c.system_identifier as settled_in,
  s.system_identifier as this_cluster,
  -- NULL: never used.
  pg_catalog.pg_sequence_last_value(q.seqrelid) as sequence_last,
  (select m.seq from outbox.message m order by m.seq desc limit 1) as seq_max,
  (select count(*) from outbox.message m where m.seq > c.high) as above_cursor,
  (select count(*) from outbox.message m where m.seq <= c.high) as at_or_below,
  (select count(*) from outbox.held) as held,
  (select count(*) from outbox.scheduled) as scheduled
from outbox.cursor c
cross join pg_catalog.pg_control_system() s
left join pg_catalog.pg_sequence q
  on q.seqrelid = pg_catalog.pg_get_serial_sequence('outbox.message'::regclass::text, 'seq')::regclass
where c.singleton
