-- outboxd 0002: scheduled intents, idempotent emits, what operators change, restore and sweep.
--
-- What an operator sees: new columns and tables; the write lock is held for some milliseconds, and for a walk over the retained
-- intents while two partial indexes are built, about a second for three million.
--
-- With outboxd:  outboxd migrate           (only show the SQL: --dry-run)
-- With sqlite3:  sqlite3 -bail app.db 'begin immediate' '.read 0002_delivery.sql' 'commit'

-- Not delivered before this time: RFC 3339 in UTC with milliseconds, 2026-01-02T03:04:05.678Z. Such an intent blocks nobody and nobody
-- blocks it until then.
alter table outbox_message add column deliver_after text;
-- Unique while the intent is retained. To emit once and get the first id:
--   insert into outbox_message (.., idempotency_key) values (.., ?1) on conflict (idempotency_key) where idempotency_key is not null do nothing;
--   select id from outbox_message where idempotency_key = ?1;
alter table outbox_message add column idempotency_key text;
-- Serves emit: the intent that was written first with an idempotency key.
create unique index outbox_message_idempotency_key on outbox_message (idempotency_key) where idempotency_key is not null;
-- Serves cancel: the scheduled intent of an id.
create index outbox_message_scheduled_id on outbox_message (id) where deliver_after is not null;

-- Scheduled messages: dealt with by the cursor, and waiting here for their time. The primary key serves settle, which schedules a
-- message once, and purge, which skips it.
create table outbox_scheduled (
  seq          integer primary key,
  id           text not null,
  topic        text not null,
  -- Hash of topic and key; NULL: no key, so no order.
  key_hash     integer,
  due_at       text not null,
  scheduled_at text not null default (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
);
-- Serves the relay: is one due, which ones. Serves scheduled list.
create index outbox_scheduled_due on outbox_scheduled (due_at, seq);
-- Serves scheduled cancel by message id.
create index outbox_scheduled_id on outbox_scheduled (id);

-- Scheduled messages that are not to be delivered. An application cancels in its own transaction, by the id as it is stored:
--   insert into outbox_cancelled (id, why) values (?1, 'order 17 was withdrawn');
-- It takes effect if it is committed before deliver_after, and is refused once that time has come. The relay looks here when a
-- message's time comes, and notes it in outbox_held_action.
create table outbox_cancelled (
  -- Of an id that is used again after a cancellation, only what was written before the last one is cancelled.
  id           not null primary key on conflict replace,
  cancelled_at text not null default (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
  who          text not null default 'application',
  why          text not null default 'cancelled by the application'
);
create trigger outbox_cancelled_refuse before insert on outbox_cancelled
when not exists (
  select 1 from outbox_message
  where id = new.id and deliver_after is not null and deliver_after > strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
begin
  select raise(abort, 'outbox refuses to cancel: there is no scheduled intent of this id, or its time has come.');
end;

drop trigger outbox_message_refuse;
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
    when new.deliver_after is not null and (typeof(new.deliver_after) <> 'text'
        or new.deliver_after is not strftime('%Y-%m-%dT%H:%M:%fZ', new.deliver_after)) then
      raise(abort, 'outbox refuses this intent: deliver_after is no time. Write it as RFC 3339 in UTC with milliseconds, 2026-01-02T03:04:05.678Z, or leave it out.')
    when new.idempotency_key is not null and (typeof(new.idempotency_key) <> 'text'
        or length(cast(new.idempotency_key as blob)) not between 1 and 500) then
      raise(abort, 'outbox refuses this intent: idempotency_key is not text of 1 to 500 bytes. Leave it out to have none.')
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

drop trigger outbox_message_keep_undelivered;
-- Only what was dispatched, cancelled or discarded may go. Purge asks the same questions; this also stops everybody else.
create trigger outbox_message_keep_undelivered before delete on outbox_message
when old.seq > (select high from outbox_cursor) or exists (select 1 from outbox_held where seq = old.seq)
  or exists (select 1 from outbox_scheduled where seq = old.seq)
begin
  select raise(abort, 'this intent was not delivered and cannot be deleted: let the relay dispatch it, or discard it with "outboxd held discard" if it is held.');
end;

-- Where the copy of a parked message is: topic[partition]@offset.
alter table outbox_held add column dead_letter text;

-- An intent is never changed: what an operator changed about a held message stands here and is applied when it is published. Kept
-- as long as the intent. edited: a JSON array of topic, partition, headers, payload; a NULL in the other columns means nothing.
create table outbox_held_edit (
  seq       integer primary key,
  edited    text not null check (json_type(edited) = 'array'),
  topic     text,
  partition integer,
  headers   text,
  payload   blob,
  edited_at text not null default (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
);

-- The audit takes more kinds: SQLite cannot change a CHECK, so the table is made anew with what it holds.
create table outbox_held_action_new (
  action         integer primary key autoincrement,
  at             text not null default (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
  kind           text not null check (kind in ('retry', 'discard', 'edit', 'cancel', 'sweep')),
  id             text not null,
  seq            integer not null,
  topic          text not null,
  reason_held    text not null,
  correlation_id text,
  who            text not null,
  why            text not null,
  -- edit: what was changed, without payloads.
  details        text
);
insert into outbox_held_action_new (action, at, kind, id, seq, topic, reason_held, correlation_id, who, why)
  select action, at, kind, id, seq, topic, reason_held, correlation_id, who, why from outbox_held_action;
drop table outbox_held_action;
alter table outbox_held_action_new rename to outbox_held_action;
-- Serves the sweep: was a message discarded or cancelled.
create index outbox_held_action_seq on outbox_held_action (seq);

-- What operators did to the outbox as a whole. Never purged.
create table outbox_operation (
  operation integer primary key autoincrement,
  at        text not null default (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
  kind      text not null check (kind in ('rebase')),
  who       text not null,
  why       text not null,
  details   text not null
);

-- The Kafka cluster that this outbox is published to; NULL until a relay reached one.
alter table outbox_cursor add column kafka_cluster text;
-- Terms in a row that ended with neither a settle nor an orderly end.
alter table outbox_cursor add column terms_unsettled integer not null default 0;
-- The message of the attempt that was started last and has not finished, and how many of its attempts did not.
alter table outbox_cursor add column trial_seq integer;
alter table outbox_cursor add column trials integer not null default 0;

-- Where the sweep stands: it compares messages below the cursor with receipts, in laps over the table. One row.
create table outbox_sweep (
  singleton    integer primary key default 1 check (singleton = 1),
  swept_to     integer not null default 0,
  lap_began_at text not null default (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
  lap_ended_at text,
  laps         integer not null default 0,
  -- Messages that the cursor had passed and nobody had delivered. Always 0, or something is badly wrong.
  found        integer not null default 0
);
insert into outbox_sweep default values;

-- Receipts out of order span less than 4096 places each, so that whoever looks for a place knows where to begin. For the sweep, rows
-- of before:
create index outbox_receipt_wide on outbox_receipt (seq_first) where out_of_order and seq_last - seq_first >= 4096;

insert into outbox_migration (version, name) values (2, 'delivery');
