-- Up to where is the log on disk?
select (pg_current_wal_flush_lsn() - '0/0'::pg_lsn)::bigint as flushed
