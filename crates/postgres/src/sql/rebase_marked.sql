-- How many would be marked? Messages that are still being written here count too: they are waited for first.
select count(*) as marked
from outbox.message m
where m.xid >= pg_catalog.pg_snapshot_xmin(pg_catalog.pg_current_snapshot())
