-- Which migrations of the inbox were applied, and from which text (NULL: another tool applied it).
select version, checksum from inbox_migration order by version
