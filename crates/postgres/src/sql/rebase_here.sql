-- The words of this cluster: the number of this transaction, which is not finished in the snapshot, and the number after it. (The snapshot
-- is older than the number, so it is not listed in it but lies at or above its xmax.)
select
  pg_catalog.pg_current_xact_id()::text as xid,
  (pg_catalog.pg_current_xact_id()::text::numeric + 1)::text as bound,
  pg_catalog.pg_current_snapshot()::text as snapshot
