-- Can this server take the outbox: its version, and whether it is a standby?
select pg_catalog.current_setting('server_version_num')::integer as version_num,
       pg_catalog.current_setting('server_version') as version,
       pg_catalog.pg_is_in_recovery() as in_recovery
