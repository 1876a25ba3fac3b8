-- Which migrations were applied, and from which text (NULL: another tool applied it).
select version, checksum from outbox_migration order by version
