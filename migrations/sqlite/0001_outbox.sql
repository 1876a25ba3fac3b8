-- outboxd 0001: the outbox.
--
-- What an operator sees: new tables outbox_* in this database file, nothing else is touched; the write lock is held for some
-- milliseconds. Needs SQLite 3.35 or later in every process that writes intents, and a database whose encoding is UTF-8.
--
-- With outboxd:  outboxd migrate           (only show the SQL: --dry-run)
-- With sqlite3:  sqlite3 -bail app.db 'pragma journal_mode = wal' 'begin immediate' '.read 0001_outbox.sql' 'commit'
--
-- In WAL mode the relay reads while the application writes; the mode is a property of the file and stays.

-- ---------------------------------------------------------------------------------------------------------------------
-- Intents. Append-only: dispatching never updates a row; what is dispatched is outbox_cursor.
--
-- Writers leave out seq and created_at. An explicit NULL in id or correlation_id, which ORMs send, means "not set":
-- `on conflict replace` puts the default in its place, and `returning id, seq` shows it. Times are RFC 3339, UTC.
--
-- AUTOINCREMENT matters: without it the sequence starts again at 1 after the last row is purged, below the cursor.
create table outbox_message (
  seq            integer primary key autoincrement,
  -- What consumers are idempotent on: UUID as text, or as a blob of 16 bytes. Default: a UUIDv7.
  id             not null on conflict replace default (
                   substr(printf('%012x', cast((julianday('now') - 2440587.5) * 86400000 as integer)), 1, 8) || '-'
                   || substr(printf('%012x', cast((julianday('now') - 2440587.5) * 86400000 as integer)), 9, 4) || '-7'
                   || substr(lower(hex(randomblob(2))), 2) || '-' || substr('89ab', 1 + (random() & 3), 1)
                   || substr(lower(hex(randomblob(2))), 2) || '-' || lower(hex(randomblob(6)))),
  topic          text,
  -- Intents of one topic and key keep their order.
  key            text,
  -- A JSON object of strings; stamped after the headers of the relay.
  headers        text,
  -- Explicit partition instead of the one that the key decides.
  partition      integer,
  content_type   text,
  -- Ties together what belongs to one business transaction. Default: a fresh UUIDv4.
  correlation_id text not null on conflict replace default (
                   lower(hex(randomblob(4))) || '-' || lower(hex(randomblob(2))) || '-4'
                   || substr(lower(hex(randomblob(2))), 2) || '-' || substr('89ab', 1 + (random() & 3), 1)
                   || substr(lower(hex(randomblob(2))), 2) || '-' || lower(hex(randomblob(6)))),
  causation_id   text,
  traceparent    text,
  tracestate     text,
  created_at     text not null on conflict replace default (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
  -- The bytes of the record, exactly as written: a blob, or text as UTF-8. NULL: a tombstone, which needs a key. The last
  -- column, because SQLite reads through a large value to what is behind it.
  payload        blob
);

-- The limit that the trigger below reads; one row. To change it:
--   update outbox_setting set max_message_bytes = 500000;
-- at most what the topics take (max.message.bytes of Kafka, 1048588 by default, less some hundred bytes for the batch and the
-- headers that the relay stamps).
create table outbox_setting (
  singleton         integer primary key default 1 check (singleton = 1),
  max_message_bytes integer not null default 1000000
                    check (typeof(max_message_bytes) = 'integer' and max_message_bytes > 0)
);
insert into outbox_setting default values;

-- Refuses a bad intent inside the business transaction, with what to do about it. A trigger rather than CHECKs: its text says
-- more, and `insert or ignore` would skip over a CHECK in silence. It runs after the insert because only then are the defaults
-- in place; what it refuses is undone with its statement.
create trigger outbox_message_refuse after insert on outbox_message
begin
  select case
    when new.seq <= (select high from outbox_cursor) or new.seq < (select max(seq) from outbox_message) then
      raise(abort, 'outbox refuses this intent: its seq was drawn already. Leave seq out: the database draws it.')
    -- Both sides are the time of the statement, so a difference means that the writer set it.
    when new.created_at <> strftime('%Y-%m-%dT%H:%M:%fZ', 'now') then
      raise(abort, 'outbox refuses this intent: created_at is set. Leave it out: the database sets it.')
    when typeof(new.id) = 'blob' and length(new.id) <> 16 or typeof(new.id) not in ('text', 'blob')
        or typeof(new.id) = 'text' and (length(new.id) <> 36 or length(cast(new.id as blob)) <> 36
          or new.id not glob '????????-????-????-????-????????????'
          or length(replace(new.id, '-', '')) <> 32 or replace(new.id, '-', '') glob '*[^0-9a-fA-F]*') then
      raise(abort, 'outbox refuses this intent: id is no UUID. Write it as 36 characters of text or as a blob of 16 bytes, or leave it out for a fresh one.')
    when coalesce(length(cast(new.topic as blob)), 0) = 0 then
      raise(abort, 'outbox refuses this intent: topic is empty. Name the Kafka topic that this intent goes to.')
    when typeof(new.topic) <> 'text' or length(cast(new.topic as blob)) > 249
        or length(new.topic) <> length(cast(new.topic as blob)) or new.topic glob '*[^-a-zA-Z0-9._]*'
        or new.topic in ('.', '..') or substr(new.topic, 1, 2) = '__' then
      raise(abort, 'outbox refuses this intent: topic is not a legal name. A topic is 1 to 249 characters of a-z, A-Z, 0-9, ".", "_" and "-"; not "." or ".."; names that start with "__" belong to Kafka.')
    when typeof(new.key) not in ('text', 'null') then
      raise(abort, 'outbox refuses this intent: key is not text. Write binary keys as text, for example hex or base64.')
    when typeof(new.payload) not in ('blob', 'text', 'null') then
      raise(abort, 'outbox refuses this intent: payload is a number. Write the bytes as a blob or as text.')
    when new.payload is null and new.key is null then
      raise(abort, 'outbox refuses this intent: it has neither payload nor key. NULL payload is a tombstone, which deletes a key: give it a key. An empty payload is '''', not NULL.')
    when new.partition is not null and (typeof(new.partition) <> 'integer' or new.partition not between 0 and 2147483647) then
      raise(abort, 'outbox refuses this intent: partition is not a number from 0 to 2147483647. Leave it out to let the key decide.')
    when typeof(new.content_type) not in ('text', 'null') or typeof(new.causation_id) not in ('text', 'null')
        or typeof(new.traceparent) not in ('text', 'null') or typeof(new.tracestate) not in ('text', 'null') then
      raise(abort, 'outbox refuses this intent: content_type, causation_id, traceparent or tracestate is not text. Write text, or leave it out.')
    when typeof(new.correlation_id) <> 'text' or new.correlation_id = '' then
      raise(abort, 'outbox refuses this intent: correlation_id is empty or not text. Leave it out, or give NULL, to get a fresh one.')
    when length(cast(new.correlation_id as blob)) > 1000 or coalesce(length(cast(new.causation_id as blob)), 0) > 1000
        or coalesce(length(cast(new.content_type as blob)), 0) > 1000
        or coalesce(length(cast(new.traceparent as blob)), 0) > 1000
        or coalesce(length(cast(new.tracestate as blob)), 0) > 8192 then
      raise(abort, 'outbox refuses this intent: correlation_id, causation_id, content_type, traceparent or tracestate is too long. tracestate takes 8192 bytes, each of the others 1000. Write what is longer into a header or the payload.')
    when new.headers is not null and (typeof(new.headers) <> 'text' or not json_valid(new.headers)) then
      raise(abort, 'outbox refuses this intent: headers are not JSON. Write one JSON object whose values are strings: {"tenant": "42"}. No headers: NULL.')
    when new.headers is not null and json_type(new.headers) <> 'object' then
      raise(abort, 'outbox refuses this intent: headers are not a JSON object. Write one object whose values are strings: {"tenant": "42"}. No headers: NULL.')
    when new.headers is not null and exists (select 1 from json_each(new.headers) as h where h.type <> 'text') then
      raise(abort, 'outbox refuses this intent: a header is not a string. Header values are strings; write numbers and objects as text: {"tenant": "42"}.')
    when new.headers is not null
        and exists (select 1 from json_each(new.headers) as h where length(cast(h.key as blob)) not between 1 and 256) then
      raise(abort, 'outbox refuses this intent: a header name is empty or too long. Header names are 1 to 256 bytes long.')
    when new.headers is not null and exists (
        select 1 from json_each(new.headers) as h
        where h.key in ('id', 'correlation-id', 'causation-id', 'content-type', 'traceparent', 'tracestate')
           or substr(h.key, 1, 7) = 'outbox-') then
      raise(abort, 'outbox refuses this intent: a header name is reserved. The relay stamps id, correlation-id, causation-id, content-type, traceparent, tracestate and outbox-* itself: set the column of that name, or use another header name.')
    when coalesce(length(cast(new.payload as blob)), 0) + coalesce(length(cast(new.key as blob)), 0)
        + coalesce(length(cast(new.headers as blob)), 0) + length(cast(new.correlation_id as blob))
        + coalesce(length(cast(new.causation_id as blob)), 0) + coalesce(length(cast(new.content_type as blob)), 0)
        + coalesce(length(cast(new.traceparent as blob)), 0) + coalesce(length(cast(new.tracestate as blob)), 0)
        > (select max_message_bytes from outbox_setting) then
      raise(abort, 'outbox refuses this intent: payload, key and headers are larger than outbox_setting.max_message_bytes together. Store the large part elsewhere and send a reference to it, or raise the limit, not above what the topics take.')
    end;
end;

-- `insert or replace` with a seq that exists would delete an intent without asking the trigger on delete.
create trigger outbox_message_keep_seq before insert on outbox_message
when exists (select 1 from outbox_message where seq = new.seq)
begin
  select raise(abort, 'outbox refuses this intent: its seq was drawn already. Leave seq out: the database draws it.');
end;

create trigger outbox_message_keep_content before update on outbox_message
begin
  select raise(abort, 'an intent is never changed: insert another one, or discard it with "outboxd held discard" if it is held.');
end;

-- Only what was dispatched or discarded may go. Purge asks the same questions; this also stops everybody else.
create trigger outbox_message_keep_undelivered before delete on outbox_message
when old.seq > (select high from outbox_cursor) or exists (select 1 from outbox_held where seq = old.seq)
begin
  select raise(abort, 'this intent was not delivered and cannot be deleted: let the relay dispatch it, or discard it with "outboxd held discard" if it is held.');
end;

-- ---------------------------------------------------------------------------------------------------------------------
-- The dispatch cursor, one row: every message with seq <= high has been dealt with. SQLite has one writer at a time, so no
-- message ever becomes visible below one that was read before it.
--
-- The lead is a lease: a relay leads while the time is between kept_at and lease_until. Whoever takes it bumps the epoch and
-- draws a nonce, and every settle names both.
create table outbox_cursor (
  singleton   integer primary key default 1 check (singleton = 1),
  epoch       integer not null check (typeof(epoch) = 'integer'),
  nonce       text,
  relay       text,
  led_at      text,
  kept_at     text,
  lease_until text,
  high        integer not null check (typeof(high) = 'integer'),
  settled_at  text
);
insert into outbox_cursor (epoch, high) values (0, 0);

-- Where messages landed in Kafka: one row a settle, packed (format: outboxd-core, receipts).
create table outbox_receipt (
  receipt       integer primary key autoincrement,
  epoch         integer not null,
  relay         text,
  settled_at    text not null default (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
  -- Receipts of released messages: their range overlaps others.
  out_of_order  integer not null check (out_of_order in (0, 1)),
  cursor_before text not null,
  cursor_after  text not null,
  seq_first     integer not null,
  seq_last      integer not null,
  messages      integer not null,
  receipts      blob not null
);
-- Serves the lookup of a message's place in Kafka by its seq.
create index outbox_receipt_seq on outbox_receipt (out_of_order, seq_first);

-- Messages set aside: one narrow row each, the payload stays in outbox_message. The primary key serves settle, which updates
-- and removes held messages by seq, and purge, which skips them.
create table outbox_held (
  seq      integer primary key,
  id       text not null,
  topic    text not null,
  -- Hash of topic and key; NULL: no key, so no order.
  key_hash integer,
  -- What it waits for: its due time, its topic, an earlier message of its key, an operator.
  state    text not null check (state in ('retry', 'topic', 'behind', 'parked')),
  reason   text not null,
  error    text,
  attempts integer not null default 0 check (typeof(attempts) = 'integer' and attempts >= 0),
  -- The last ten failed attempts: [{"at": .., "error": ..}].
  failures text not null default '[]' check (json_type(failures) = 'array'),
  -- When it is tried again; a message that waits for its topic is due from the beginning.
  due_at   text,
  held_at  text not null default (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
);
-- Serves the release of held messages: the earlier held messages of a key, and whether all of a key's are `behind`.
create index outbox_held_key_hash_seq on outbox_held (key_hash, seq, state);
-- Serves the question which keys have messages that wait for an earlier one.
create index outbox_held_behind on outbox_held (key_hash) where state = 'behind';
-- Serves the question whether a held message is due, topic by topic.
create index outbox_held_due on outbox_held (topic, due_at) where state in ('retry', 'topic');
-- Serves held show, retry and discard by message id.
create index outbox_held_id on outbox_held (id);

-- What operators did to held messages. Never purged: it is how a discarded intent is accounted for.
create table outbox_held_action (
  action         integer primary key autoincrement,
  at             text not null default (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
  kind           text not null check (kind in ('retry', 'discard')),
  id             text not null,
  seq            integer not null,
  topic          text not null,
  reason_held    text not null,
  correlation_id text,
  who            text not null,
  why            text not null
);

-- Which migrations were applied. checksum is NULL where a file was applied with another tool than outboxd.
create table outbox_migration (
  version    integer primary key,
  name       text not null,
  checksum   text,
  applied_at text not null default (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
  applied_by text
);
insert into outbox_migration (version, name) values (1, 'outbox');
