-- outboxd 0001: the outbox.
--
-- What an operator sees: new objects in schema "outbox", nothing else is touched or locked; well under a second.
-- Needs PostgreSQL 13 or later and CREATE on the database, or a schema "outbox" that exists and belongs to the role that
-- runs this. No extension, no superuser, no CREATEROLE.
--
-- With outboxd:  outboxd migrate           (another schema: --schema x; only show the SQL: --dry-run)
-- With psql:     psql -1 -v ON_ERROR_STOP=1 -f 0001_outbox.sql
-- Then grant:    outboxd migrate grants --writer app --relay relay --reader ops

do $$
begin
  if not exists (select from pg_catalog.pg_namespace where nspname = 'outbox'::name) then
    create schema outbox;
  end if;
end
$$;

-- ---------------------------------------------------------------------------------------------------------------------
-- Refusing a bad intent. Every CHECK on outbox.message is `case when <cheap test> then true else outbox.refuse(..) end`: a
-- good intent pays for the test alone, a bad one fails inside the business transaction with a text that says what to do. An
-- ordinary CHECK or NOT NULL violation would print the row, payload included; these print names and sizes only.

create function outbox.refuse(problem text, remedy text) returns boolean
  language plpgsql volatile parallel safe set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception using errcode = 'check_violation', message = 'outbox refuses this intent: ' || problem, hint = remedy;
end
$$;
comment on function outbox.refuse(text, text) is 'Fails with what is wrong with an intent and what to do about it.';

-- The limit is a function so that the CHECK reads it for nothing (it is folded into the plan). To change it, run this
-- statement again with another number, at most what the topics take (max.message.bytes of Kafka, 1048588 by default, less some
-- hundred bytes for the batch and the headers that the relay stamps). It applies from the next statement on.
create function outbox.max_message_bytes() returns integer
  language plpgsql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
begin
  return 1000000;
end
$$;
comment on function outbox.max_message_bytes() is
  'Largest intent in bytes: payload, key and headers. Change it with CREATE OR REPLACE FUNCTION.';

-- Called only for headers that the CHECK could not clear by its cheap tests: finds out what is wrong with them, if anything.
create function outbox.refuse_headers(headers jsonb) returns boolean
  language plpgsql volatile parallel safe set search_path = pg_catalog, pg_temp
as $$
declare
  header record;
begin
  if jsonb_typeof(headers) <> 'object' then
    return outbox.refuse(
      format('headers are a JSON %s', jsonb_typeof(headers)),
      'Write headers as one JSON object whose values are strings: {"tenant": "42"}. No headers: NULL.');
  end if;
  select e.name, octet_length(e.name) as bytes, jsonb_typeof(e.value) as type
    into header
    from jsonb_each(headers) as e(name, value)
    where jsonb_typeof(e.value) <> 'string'
       or octet_length(e.name) not between 1 and 256
       or e.name in ('id', 'correlation-id', 'causation-id', 'content-type', 'traceparent', 'tracestate')
       or starts_with(e.name, 'outbox-')
    limit 1;
  if not found then
    return true;
  elsif header.bytes not between 1 and 256 then
    return outbox.refuse(
      format('a header name is %s bytes long', header.bytes),
      'Header names are 1 to 256 bytes long.');
  elsif header.type <> 'string' then
    return outbox.refuse(
      format('header %L is a JSON %s', left(header.name, 64), header.type),
      'Header values are strings. Write numbers and objects as text: {"tenant": "42"}.');
  else
    return outbox.refuse(
      format('header name %L is reserved', left(header.name, 64)),
      'The relay stamps id, correlation-id, causation-id, content-type, traceparent, tracestate and outbox-* itself: '
      'set the column of that name, or use another header name.');
  end if;
end
$$;
comment on function outbox.refuse_headers(jsonb) is 'Says what is wrong with headers, or true if nothing is.';

-- ---------------------------------------------------------------------------------------------------------------------
-- Intents. Append-only: dispatching never updates a row; what is dispatched is outbox.cursor.
--
-- xid is the FIRST column and seq the LAST because defaults are evaluated in column order. seq must be drawn after everything
-- that may wait, such as `values ((select n from u))` where u updates a locked aggregate, or two intents of one key are
-- numbered the wrong way round; xid must be drawn before seq. A column added later therefore gets a constant default.
--
-- Writers may set every column but xid, created_at and seq. What they leave out of correlation_id, causation_id, traceparent
-- and tracestate comes from settings of their transaction:
--   select set_config('outbox.correlation_id', '...', true);
-- An empty setting counts as not set; a message without a correlation id gets a fresh one.
create table outbox.message (
  xid            xid8 not null default pg_current_xact_id(),
  -- A UUIDv7: 48 bits of milliseconds, then gen_random_uuid()'s random bits; setting bits 52 and 53 turns version 4 into 7.
  -- 2.1 us a row, gen_random_uuid() alone 1.2 (`insert into t(id) select .. from generate_series(1, 200000)`, PostgreSQL 15).
  id             uuid not null default encode(set_bit(set_bit(overlay(uuid_send(gen_random_uuid())
                   placing substring(int8send((date_part('epoch', clock_timestamp()) * 1000)::bigint) from 3) from 1 for 6),
                   52, 1), 53, 1), 'hex')::uuid,
  topic          text not null,
  key            text,
  payload        bytea,
  headers        jsonb,
  partition      integer,
  content_type   text,
  correlation_id text not null default coalesce(nullif(current_setting('outbox.correlation_id', true), ''),
                   gen_random_uuid()::text),
  causation_id   text default nullif(current_setting('outbox.causation_id', true), ''),
  traceparent    text default nullif(current_setting('outbox.traceparent', true), ''),
  tracestate     text default nullif(current_setting('outbox.tracestate', true), ''),
  created_at     timestamptz not null default clock_timestamp(),
  seq            bigint generated always as identity (cache 1) primary key,

  constraint message_topic check (case
    when octet_length(topic) between 1 and 249 and topic !~ '[^a-zA-Z0-9._-]' and topic not in ('.', '..')
      and not starts_with(topic, '__') then true
    when topic = '' then outbox.refuse('topic is empty', 'Name the Kafka topic that this intent goes to.')
    else outbox.refuse(
      format('topic %L is not a legal name', left(topic, 64)),
      'A topic is 1 to 249 characters of a-z, A-Z, 0-9, ".", "_" and "-"; not "." or ".."; names that start with "__" '
      'belong to Kafka.')
    end),
  -- The second test lets some good headers through to the function too (a long text, a value that looks like a reserved name); it
  -- decides. Three headers cost 0.7 us this way, 3.7 us by the function, 4.9 us by one JSON path for all rules.
  constraint message_headers check (case
    when headers is null then true
    when jsonb_typeof(headers) = 'object'
      and not jsonb_path_exists(headers, 'strict $.* ? (@.type() != "string")')
      and not headers ?| '{"",id,correlation-id,causation-id,content-type,traceparent,tracestate}'
      and headers::text not like '%"outbox-%' and octet_length(headers::text) <= 256 then true
    else outbox.refuse_headers(headers)
    end),
  constraint message_partition check (case
    when partition is null or partition >= 0 then true
    else outbox.refuse(
      format('partition %s is negative', partition),
      'Leave partition out to let the key decide, or give 0 or more.')
    end),
  constraint message_tombstone check (case
    when payload is not null or key is not null then true
    else outbox.refuse(
      'it has neither payload nor key',
      'NULL payload is a tombstone, which deletes a key: give it a key. An empty payload is '''', not NULL.')
    end),
  constraint message_correlation_id check (case
    when correlation_id <> '' then true
    else outbox.refuse('correlation_id is empty', 'Leave it out, or give NULL, to inherit it or to get a fresh one.')
    end),
  -- These go into every log line and every copy of the record: small by contract.
  constraint message_context check (case
    when (octet_length(correlation_id) > 1000 or octet_length(causation_id) > 1000 or octet_length(content_type) > 1000
      or octet_length(traceparent) > 1000 or octet_length(tracestate) > 8192) is not true then true
    else outbox.refuse(
      format('correlation_id (%s bytes), causation_id (%s), content_type (%s), traceparent (%s) or tracestate (%s) is too long',
        octet_length(correlation_id), coalesce(octet_length(causation_id), 0), coalesce(octet_length(content_type), 0),
        coalesce(octet_length(traceparent), 0), coalesce(octet_length(tracestate), 0)),
      'tracestate takes 8192 bytes, each of the others 1000. Write what is longer into a header or the payload.')
    end),
  constraint message_size check (case
    when coalesce(octet_length(payload), 0)::bigint + coalesce(octet_length(key), 0) + coalesce(octet_length(headers::text), 0)
       + octet_length(correlation_id) + coalesce(octet_length(causation_id), 0) + coalesce(octet_length(content_type), 0)
       + coalesce(octet_length(traceparent), 0) + coalesce(octet_length(tracestate), 0)
      <= outbox.max_message_bytes() then true
    else outbox.refuse(
      format('payload (%s bytes), key (%s) and headers (%s) are larger than %s bytes together',
        coalesce(octet_length(payload), 0), coalesce(octet_length(key), 0),
        coalesce(octet_length(headers::text), 0)
          + octet_length(correlation_id) + coalesce(octet_length(causation_id), 0) + coalesce(octet_length(content_type), 0)
          + coalesce(octet_length(traceparent), 0) + coalesce(octet_length(tracestate), 0),
        outbox.max_message_bytes()),
      'Store the large part elsewhere and send a reference to it, or ask the operator to raise the limit: the function '
      'max_message_bytes() of the outbox schema, not above what the topics take.')
    end)
);
comment on table outbox.message is 'Intents: what the application wants published, written in its own transactions.';
comment on column outbox.message.xid is 'The top-level transaction that wrote the intent. Never written by applications.';
comment on column outbox.message.id is 'Message id, what consumers are idempotent on. NULL or left out: a fresh UUIDv7.';
comment on column outbox.message.key is 'Kafka key, as UTF-8. Intents of one topic and key keep their order.';
comment on column outbox.message.payload is 'The bytes of the record, exactly as written. NULL: a tombstone, which needs a key.';
comment on column outbox.message.headers is 'An object of strings; stamped after the headers of the relay.';
comment on column outbox.message.partition is 'Explicit partition instead of the one that the key decides.';
comment on column outbox.message.correlation_id is
  'Ties together what belongs to one business transaction. NULL or left out: set_config(''outbox.correlation_id''), else fresh.';
comment on column outbox.message.seq is 'Place in the outbox. Its order is the order in which writers that lock their aggregate commit.';

create index message_xid_seq on outbox.message (xid, seq);
comment on index outbox.message_xid_seq is 'Serves the page: late messages, by the transactions that the cursor''s snapshot did not see.';
comment on index outbox.message_pkey is 'Serves the page: messages above the cursor, in order.';

-- What may be shown of an intent: everything but key, payload and headers. A view runs with its owner's rights, so a role that
-- may read it needs no right to the payload to learn its size.
create view outbox.envelope as
  select seq, xid, id, topic, partition, content_type, correlation_id, causation_id, traceparent, tracestate, created_at,
         key is not null as keyed, octet_length(payload) as payload_bytes
  from outbox.message;
comment on view outbox.envelope is 'Intents without key, payload and headers: what the reader role sees.';

-- A BEFORE trigger whose WHEN is false costs next to nothing. ORMs send every column: an explicit NULL in id or correlation_id
-- means "not set". A NULL topic is refused here because NOT NULL would print the row.
create function outbox.fill_in() returns trigger
  language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
begin
  if new.topic is null then
    perform outbox.refuse('topic is NULL', 'Name the Kafka topic that this intent goes to.');
  end if;
  new.id := coalesce(new.id, encode(set_bit(set_bit(overlay(uuid_send(gen_random_uuid())
    placing substring(int8send((date_part('epoch', clock_timestamp()) * 1000)::bigint) from 3) from 1 for 6),
    52, 1), 53, 1), 'hex')::uuid);
  new.correlation_id := coalesce(
    new.correlation_id, nullif(current_setting('outbox.correlation_id', true), ''), gen_random_uuid()::text);
  return new;
end
$$;
comment on function outbox.fill_in() is 'Treats an explicit NULL in id or correlation_id as not set.';

create trigger fill_in before insert on outbox.message
  for each row when (new.id is null or new.correlation_id is null or new.topic is null)
  execute function outbox.fill_in();

-- ---------------------------------------------------------------------------------------------------------------------
-- emit: one intent, from SQL, with named arguments. Runs with the rights of its caller. Returns the message id.
--
--   select outbox.emit(topic => 'orders', key => 'order-17', payload => '{"total": 12}');
--
-- The payload's type decides the bytes:
--   bytea  the bytes themselves
--   text   the text as UTF-8, whatever the database's encoding; an untyped literal or parameter is text
--   jsonb  PostgreSQL's text form of it as UTF-8: keys sorted by length and then by bytes, the last of equal keys kept, one space after
--          ":" and ",". content_type becomes application/json unless given. To keep JSON as written, pass it as text.
-- A NULL payload is a tombstone. What is left out is inherited from the transaction's settings, as with a plain INSERT.

create function outbox.emit(
  topic text,
  payload bytea,
  key text default null,
  headers jsonb default null,
  partition integer default null,
  content_type text default null,
  correlation_id text default null,
  causation_id text default null,
  traceparent text default null,
  tracestate text default null,
  id uuid default null
) returns uuid
  language plpgsql volatile security invoker set search_path = pg_catalog, pg_temp
as $$
declare
  message_id uuid;
begin
  insert into outbox.message as m
    (id, topic, key, payload, headers, partition, content_type, correlation_id, causation_id, traceparent, tracestate)
  values
    (emit.id, emit.topic, emit.key, emit.payload, emit.headers, emit.partition, emit.content_type, emit.correlation_id,
     coalesce(emit.causation_id, nullif(current_setting('outbox.causation_id', true), '')),
     coalesce(emit.traceparent, nullif(current_setting('outbox.traceparent', true), '')),
     coalesce(emit.tracestate, nullif(current_setting('outbox.tracestate', true), '')))
  returning m.id into strict message_id;
  return message_id;
end
$$;

create function outbox.emit(
  topic text,
  payload text,
  key text default null,
  headers jsonb default null,
  partition integer default null,
  content_type text default null,
  correlation_id text default null,
  causation_id text default null,
  traceparent text default null,
  tracestate text default null,
  id uuid default null
) returns uuid
  language plpgsql volatile security invoker set search_path = pg_catalog, pg_temp
as $$
begin
  return outbox.emit(
    emit.topic, convert_to(emit.payload, 'UTF8'), emit.key, emit.headers, emit.partition, emit.content_type,
    emit.correlation_id, emit.causation_id, emit.traceparent, emit.tracestate, emit.id);
end
$$;

create function outbox.emit(
  topic text,
  payload jsonb,
  key text default null,
  headers jsonb default null,
  partition integer default null,
  content_type text default 'application/json',
  correlation_id text default null,
  causation_id text default null,
  traceparent text default null,
  tracestate text default null,
  id uuid default null
) returns uuid
  language plpgsql volatile security invoker set search_path = pg_catalog, pg_temp
as $$
begin
  return outbox.emit(
    emit.topic, convert_to(emit.payload::text, 'UTF8'), emit.key, emit.headers, emit.partition, emit.content_type,
    emit.correlation_id, emit.causation_id, emit.traceparent, emit.tracestate, emit.id);
end
$$;

comment on function outbox.emit(text, bytea, text, jsonb, integer, text, text, text, text, text, uuid) is
  'Writes one intent whose payload is these bytes; returns its id.';
comment on function outbox.emit(text, text, text, jsonb, integer, text, text, text, text, text, uuid) is
  'Writes one intent whose payload is this text as UTF-8; returns its id.';
comment on function outbox.emit(text, jsonb, text, jsonb, integer, text, text, text, text, text, uuid) is
  'Writes one intent whose payload is the text form of this jsonb as UTF-8; returns its id.';

revoke execute on function outbox.emit(text, bytea, text, jsonb, integer, text, text, text, text, text, uuid) from public;
revoke execute on function outbox.emit(text, text, text, jsonb, integer, text, text, text, text, text, uuid) from public;
revoke execute on function outbox.emit(text, jsonb, text, jsonb, integer, text, text, text, text, text, uuid) from public;

-- ---------------------------------------------------------------------------------------------------------------------
-- The dispatch cursor, one row: every message with seq <= high that is visible in the snapshot `seen` has been dealt with. During a
-- catch-up also: every message with seq <= pos that is visible in `until` and not in `seen`.
create table outbox.cursor (
  singleton         boolean primary key default true check (singleton),
  epoch             bigint not null,
  nonce             uuid,
  relay             text,
  led_at            timestamptz,
  system_identifier bigint,
  high              bigint not null,
  seen              pg_snapshot not null,
  pos               bigint,
  until             pg_snapshot,
  xid_bound         xid8 not null,
  settled_at        timestamptz,
  constraint cursor_catch_up check ((pos is null) = (until is null))
);
comment on table outbox.cursor is 'What has been dealt with, and who may say so (epoch and nonce).';
comment on column outbox.cursor.system_identifier is 'The cluster that the snapshots belong to; NULL until a relay led.';
comment on column outbox.cursor.xid_bound is 'No message that `seen` missed has an xid at or above this one.';
comment on index outbox.cursor_pkey is 'Keeps the cursor a single row.';

-- The table is empty: nothing at or below 0 was ever missed by this snapshot.
insert into outbox.cursor (epoch, high, seen, xid_bound)
values (0, 0, pg_current_snapshot(), pg_current_xact_id());

-- Where messages landed in Kafka: one row a settle, packed (format: outboxd-core, receipts).
create table outbox.receipt (
  receipt       bigint generated always as identity primary key,
  epoch         bigint not null,
  relay         text,
  settled_at    timestamptz not null default clock_timestamp(),
  out_of_order  boolean not null,
  cursor_before text not null,
  cursor_after  text not null,
  seq_first     bigint not null,
  seq_last      bigint not null,
  messages      integer not null,
  receipts      bytea not null
);
comment on table outbox.receipt is 'Where messages landed: topic, partition and offset of a run of messages, packed.';
comment on column outbox.receipt.out_of_order is 'Late and released messages: their range overlaps others.';
comment on index outbox.receipt_pkey is 'Serves the purge: deletes receipts by number.';
create index receipt_seq on outbox.receipt (out_of_order, seq_first);
comment on index outbox.receipt_seq is 'Serves the lookup of a message''s place in Kafka by its seq.';
create index receipt_settled_at on outbox.receipt (settled_at);
comment on index outbox.receipt_settled_at is 'Serves the purge: receipts older than the retention.';

-- Messages set aside: one narrow row each, the payload stays in outbox.message.
create table outbox.held (
  seq      bigint primary key,
  id       uuid not null,
  topic    text not null,
  key_hash bigint,
  state    text not null check (state in ('retry', 'topic', 'behind', 'parked')),
  reason   text not null,
  error    text,
  attempts integer not null default 0 check (attempts >= 0),
  failures jsonb not null default '[]' check (jsonb_typeof(failures) = 'array'),
  due_at   timestamptz,
  held_at  timestamptz not null default clock_timestamp()
);
comment on table outbox.held is 'Messages set aside: tried again by themselves, or parked until an operator decides.';
comment on column outbox.held.key_hash is 'Hash of topic and key; NULL: no key, so no order.';
comment on column outbox.held.state is 'What it waits for: its due time, its topic, an earlier message of its key, an operator.';
comment on column outbox.held.failures is 'The last ten failed attempts: [{"at": .., "error": ..}].';
comment on index outbox.held_pkey is 'Serves settle: updates and removes held messages by seq. Serves purge: skips what is held.';
create index held_key_hash_seq on outbox.held (key_hash, seq);
comment on index outbox.held_key_hash_seq is 'Serves the release of held messages: the earlier held messages of a key.';
create index held_topic_due on outbox.held (topic, due_at) where state in ('retry', 'topic');
comment on index outbox.held_topic_due is 'Serves the question whether a held message is due, topic by topic.';
create index held_topic_seq on outbox.held (topic, seq) where state in ('retry', 'topic');
comment on index outbox.held_topic_seq is 'Serves the release of held messages: those of a topic in order.';
create index held_id on outbox.held (id);
comment on index outbox.held_id is 'Serves held show, retry and discard by message id.';

-- What operators did to held messages. Never purged: it is how a discarded intent is accounted for.
create table outbox.held_action (
  action         bigint generated always as identity primary key,
  at             timestamptz not null default clock_timestamp(),
  kind           text not null check (kind in ('retry', 'discard')),
  id             uuid not null,
  seq            bigint not null,
  topic          text not null,
  reason_held    text not null,
  correlation_id text,
  who            text not null,
  why            text not null
);
comment on table outbox.held_action is 'Audit: who retried or discarded which held message, and why.';
comment on index outbox.held_action_pkey is 'Serves the relay: has an operator acted since it looked.';
create index held_action_seq on outbox.held_action (seq);
comment on index outbox.held_action_seq is 'Serves settle: was a message discarded while it was being published.';

-- Which migrations were applied. checksum is NULL where a file was applied with another tool than outboxd.
create table outbox.migration (
  version    integer primary key,
  name       text not null,
  checksum   text,
  applied_at timestamptz not null default clock_timestamp(),
  applied_by text not null default current_user
);
comment on table outbox.migration is 'Migrations of the outbox that were applied.';
comment on index outbox.migration_pkey is 'Serves migrate and run: which version is installed.';

insert into outbox.migration (version, name) values (1, 'outbox');
