-- The migration of the inbox has entered itself; this adds what only the migrator knows.
-- ?1 version, ?2 checksum, ?3 applied by
update inbox_migration set checksum = ?2, applied_by = ?3 where version = ?1
