-- Takes the lock of the lead if it is free; never waits, because a waiting session would hold back vacuum. Two relays share a lead
-- when they serve the same table: its oid is the second key. $1: the first key.
select
  pg_try_advisory_lock($1, ('x' || lpad(to_hex('outbox.message'::regclass::oid::bigint), 8, '0'))::bit(32)::integer) as locked
