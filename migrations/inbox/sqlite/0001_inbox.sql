-- outboxd inbox 0001: what consumers have handled.
--
-- For the database file of a consumer; it needs no outbox there. What an operator sees: new tables inbox_* in the file, nothing else
-- is touched; the write lock is held for some milliseconds. Needs SQLite 3.35 or later.
--
-- With outboxd:  outboxd migrate --inbox           (only show the SQL: --dry-run)
-- With sqlite3:  sqlite3 -bail app.db 'pragma journal_mode = wal' 'begin immediate' '.read 0001_inbox.sql' 'commit'

-- One row for each message that a consumer has handled, written in the transaction of what it did:
--
--   begin immediate;
--   insert into inbox_handled (consumer, id) values ('shipping', '0198c5a4-7a0e-7c9e-b9f1-3d6a0a6f2b11') on conflict do nothing;
--   -- changes() = 1: do what the message asks for, in this transaction. 0: it was handled, this copy must change nothing.
--   commit;
--   -- and only now acknowledge the record to Kafka, whichever it was
--
-- Begin with `immediate`: a transaction that reads first and then wants to write fails with SQLITE_BUSY if another wrote meanwhile.
create table inbox_handled (
  consumer          text not null check (typeof(consumer) = 'text' and length(cast(consumer as blob)) between 1 and 200),
  -- Message id, the header "id" of the record, as lower-case text: the same id in two spellings would be two messages.
  id                text not null check (typeof(id) = 'text' and length(id) = 36 and id = lower(id)),
  claimed_at        text not null default (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
  correlation_id    text,
  -- Place of the copy that took effect.
  topic             text,
  partition         integer,
  record_offset     integer,
  -- How many further copies came and changed nothing.
  duplicates        integer not null default 0,
  last_duplicate_at text,
  primary key (consumer, id)
) without rowid;
-- Serves the purge: the oldest first.
create index inbox_handled_claimed_at on inbox_handled (claimed_at);

-- Which migrations were applied. checksum is NULL where a file was applied with another tool than outboxd.
create table inbox_migration (
  version    integer primary key,
  name       text not null,
  checksum   text,
  applied_at text not null default (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
  applied_by text
);
insert into inbox_migration (version, name) values (1, 'inbox');
