-- Nothing of the caller's may stand in for a built-in function while a migration runs, and a table that somebody keeps locked
-- fails it instead of queueing every writer behind it.
select pg_catalog.set_config('search_path', '', true), pg_catalog.set_config('lock_timeout', '5s', true)
