-- Which server is this, and may it be written to?
select
  current_setting('server_version_num')::int as version_num,
  pg_is_in_recovery() as in_recovery,
  (extract(epoch from pg_postmaster_start_time()) * 1000000)::bigint as started_us
