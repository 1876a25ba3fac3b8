-- Which migrations were applied? (migration_pkey)
select version, name, checksum from outbox.migration order by version
