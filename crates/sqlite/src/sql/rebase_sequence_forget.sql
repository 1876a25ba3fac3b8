-- Makes room for the row of rebase_sequence.sql: the table has no key.
delete from sqlite_sequence where name = 'outbox_message'
