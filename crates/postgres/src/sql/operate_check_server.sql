-- What is there to know of the server and of this role, without any table of ours? Every role may ask.
select
  pg_catalog.current_setting('server_version') as version,
  pg_catalog.current_setting('server_version_num')::integer as version_num,
  current_user::text as role,
  pg_catalog.current_database()::text as database,
  pg_catalog.current_setting('fsync') = 'on' as fsync,
  pg_catalog.current_setting('full_page_writes') = 'on' as full_page_writes,
  -- What applications get: the default of role and database, not what this session chose.
  coalesce(
    (select pg_catalog.split_part(c.setting, '=', 2)
     from pg_catalog.pg_db_role_setting s cross join lateral pg_catalog.unnest(s.setconfig) as c(setting)
     where s.setdatabase in (0, (select d.oid from pg_catalog.pg_database d where d.datname = pg_catalog.current_database()))
       and s.setrole = 0 and c.setting like 'synchronous_commit=%'
     order by s.setdatabase desc limit 1),
    pg_catalog.current_setting('synchronous_commit')) as synchronous_commit,
  pg_catalog.current_setting('synchronous_standby_names') as synchronous_standby_names,
  (select count(*) from pg_catalog.pg_stat_get_wal_senders() w where w.sync_state in ('sync', 'quorum')) as synchronous_standbys,
  pg_catalog.current_setting('server_encoding') as encoding,
  -- How far the oldest transaction that has an xid lags behind; every role may see it.
  (select (pg_catalog.pg_snapshot_xmax(s.now)::text::numeric - pg_catalog.pg_snapshot_xmin(s.now)::text::numeric)::bigint
   from (select pg_catalog.pg_current_snapshot() as now) s) as open_xids,
  pg_catalog.pg_has_role('pg_read_all_stats', 'usage') as reads_all_stats
