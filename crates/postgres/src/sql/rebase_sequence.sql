-- Sets the sequence of messages to $1, so that what is written next is above everything.
select pg_catalog.setval(pg_catalog.pg_get_serial_sequence('outbox.message'::regclass::text, 'seq')::regclass, $1)
