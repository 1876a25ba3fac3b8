-- Which version of the outbox is installed; no row if none is.
-- Two steps, because a statement that names a missing table cannot be prepared: the caller asks table_exists.sql first.
select max(version) as version from outbox_migration
