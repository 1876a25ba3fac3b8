-- Is the lead free? The lock is given back when the statement ends, so that a relay which is then refused leaves none behind on
-- a proxy's connection. $1: the first key; see lead_lock.sql.
select
  pg_try_advisory_xact_lock($1, ('x' || lpad(to_hex('outbox.message'::regclass::oid::bigint), 8, '0'))::bit(32)::integer) as free,
  pg_backend_pid() as backend
