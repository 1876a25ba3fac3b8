-- outboxd 0002: scheduled intents, idempotent emits, what operators change, restore and sweep.
--
-- What an operator sees: outbox.message is locked against writers (ACCESS EXCLUSIVE) while one index is built over it: it is a
-- partial index and empty at first, so this is one walk over the table, about a second for three million retained intents. Purge
-- first, or run it while the application is quiet, if that is too long. Everything else takes milliseconds. Roles that were
-- granted a part of 0001 are granted its new objects too.
--
-- With outboxd:  outboxd migrate
-- With psql:     psql -1 -v ON_ERROR_STOP=1 -f 0002_delivery.sql
--
-- A relay of the version before goes on working with this schema, but publishes scheduled intents at once: roll the relays out
-- before the first intent is scheduled.

-- ---------------------------------------------------------------------------------------------------------------------
-- Two more columns. They stand behind seq, so their defaults are constants (see 0001).

alter table outbox.message
  add column deliver_after timestamptz,
  add column idempotency_key text,
  add constraint message_deliver_after check (case
    when deliver_after is null or deliver_after between '0001-01-02 00:00:00+00' and '9999-12-30 00:00:00+00' then true
    else outbox.refuse(
      'deliver_after is infinite, or in no year from 1 to 9999',
      'Give the time from which the intent may be delivered, or leave it out.')
    end),
  add constraint message_idempotency_key check (case
    when idempotency_key is null or octet_length(idempotency_key) between 1 and 500 then true
    else outbox.refuse(
      format('idempotency_key is %s bytes long', octet_length(idempotency_key)),
      'An idempotency key is 1 to 500 bytes long. Leave it out to have none.')
    end);

comment on column outbox.message.deliver_after is
  'Not delivered before this time, by the database''s clock. Such an intent blocks nobody and nobody blocks it until then.';
comment on column outbox.message.idempotency_key is
  'Unique while the intent is retained: a second emit with it returns the first id and writes nothing.';

-- The name is what a plain INSERT shows that repeats a key: it says what to do.
create unique index idempotency_key_is_taken_emit_returns_the_id_of_the_first on outbox.message (idempotency_key)
  where idempotency_key is not null;
comment on index outbox.idempotency_key_is_taken_emit_returns_the_id_of_the_first is
  'Serves emit: the intent that was written first with an idempotency key.';

create index message_scheduled_id on outbox.message (id) where deliver_after is not null;
comment on index outbox.message_scheduled_id is 'Serves cancel: the scheduled intent of an id.';

create or replace view outbox.envelope as
  select seq, xid, id, topic, partition, content_type, correlation_id, causation_id, traceparent, tracestate, created_at,
         key is not null as keyed, octet_length(payload) as payload_bytes, deliver_after, idempotency_key
  from outbox.message;

-- ---------------------------------------------------------------------------------------------------------------------
-- emit, with the two. Named arguments go on working; the functions of 0001 go, or every call would be ambiguous. What roles were
-- granted is carried over at the end of this file.

create table outbox.granted_before as
select 'writer' as part, g.grantee
from pg_catalog.pg_proc p cross join lateral pg_catalog.aclexplode(p.proacl) g
where p.oid = 'outbox.emit(text, bytea, text, jsonb, integer, text, text, text, text, text, uuid)'::regprocedure
  and g.grantee <> p.proowner and g.privilege_type = 'EXECUTE'
union
select case when bool_or(g.privilege_type = 'DELETE') then 'relay' else 'reader' end, g.grantee
from pg_catalog.pg_class c cross join lateral pg_catalog.aclexplode(c.relacl) g
where c.oid = 'outbox.held'::regclass and g.grantee <> c.relowner and g.privilege_type in ('SELECT', 'DELETE')
group by g.grantee;

drop function outbox.emit(text, bytea, text, jsonb, integer, text, text, text, text, text, uuid);
drop function outbox.emit(text, text, text, jsonb, integer, text, text, text, text, text, uuid);
drop function outbox.emit(text, jsonb, text, jsonb, integer, text, text, text, text, text, uuid);

-- With an idempotency key that was used before, and whose intent is still retained: returns the id of that intent and writes
-- nothing, whatever else differs. A transaction that is writing the same key is waited for: if it commits, its id is returned; if it
-- rolls back, this intent is written. That is READ COMMITTED; in REPEATABLE READ and SERIALIZABLE a key that was committed after
-- this transaction's snapshot is a serialization failure (40001): run the transaction again.
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
  id uuid default null,
  deliver_after timestamptz default null,
  idempotency_key text default null
) returns uuid
  language plpgsql volatile security invoker set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  message_id uuid;
begin
  -- Often enough for a purge or a rollback in between, and never for ever.
  for attempt in 1 .. 10 loop
    if emit.idempotency_key is not null then
      select m.id into message_id from outbox.message m where m.idempotency_key = emit.idempotency_key;
      if found then
        return message_id;
      end if;
    end if;
    insert into outbox.message as m
      (id, topic, key, payload, headers, partition, content_type, correlation_id, causation_id, traceparent, tracestate,
       deliver_after, idempotency_key)
    values
      (emit.id, emit.topic, emit.key, emit.payload, emit.headers, emit.partition, emit.content_type, emit.correlation_id,
       coalesce(emit.causation_id, nullif(current_setting('outbox.causation_id', true), '')),
       coalesce(emit.traceparent, nullif(current_setting('outbox.traceparent', true), '')),
       coalesce(emit.tracestate, nullif(current_setting('outbox.tracestate', true), '')),
       emit.deliver_after, emit.idempotency_key)
    on conflict (idempotency_key) where idempotency_key is not null do nothing
    returning m.id into message_id;
    if found then
      return message_id;
    end if;
  end loop;
  raise exception using errcode = 'serialization_failure',
    message = 'emit: the idempotency key was taken and given back ten times while this ran',
    hint = 'Run the transaction again.';
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
  id uuid default null,
  deliver_after timestamptz default null,
  idempotency_key text default null
) returns uuid
  language plpgsql volatile security invoker set search_path = pg_catalog, pg_temp
as $$
begin
  return outbox.emit(
    emit.topic, convert_to(emit.payload, 'UTF8'), emit.key, emit.headers, emit.partition, emit.content_type,
    emit.correlation_id, emit.causation_id, emit.traceparent, emit.tracestate, emit.id, emit.deliver_after,
    emit.idempotency_key);
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
  id uuid default null,
  deliver_after timestamptz default null,
  idempotency_key text default null
) returns uuid
  language plpgsql volatile security invoker set search_path = pg_catalog, pg_temp
as $$
begin
  return outbox.emit(
    emit.topic, convert_to(emit.payload::text, 'UTF8'), emit.key, emit.headers, emit.partition, emit.content_type,
    emit.correlation_id, emit.causation_id, emit.traceparent, emit.tracestate, emit.id, emit.deliver_after,
    emit.idempotency_key);
end
$$;

comment on function
  outbox.emit(text, bytea, text, jsonb, integer, text, text, text, text, text, uuid, timestamptz, text) is
  'Writes one intent whose payload is these bytes; returns its id.';
comment on function
  outbox.emit(text, text, text, jsonb, integer, text, text, text, text, text, uuid, timestamptz, text) is
  'Writes one intent whose payload is this text as UTF-8; returns its id.';
comment on function
  outbox.emit(text, jsonb, text, jsonb, integer, text, text, text, text, text, uuid, timestamptz, text) is
  'Writes one intent whose payload is the text form of this jsonb as UTF-8; returns its id.';

revoke execute on function
  outbox.emit(text, bytea, text, jsonb, integer, text, text, text, text, text, uuid, timestamptz, text),
  outbox.emit(text, text, text, jsonb, integer, text, text, text, text, text, uuid, timestamptz, text),
  outbox.emit(text, jsonb, text, jsonb, integer, text, text, text, text, text, uuid, timestamptz, text)
  from public;

-- ---------------------------------------------------------------------------------------------------------------------
-- Scheduled messages: dealt with by the cursor, and waiting here for their time. A table of its own, so that a million of them are
-- nothing to what is held.
create table outbox.scheduled (
  seq          bigint primary key,
  id           uuid not null,
  topic        text not null,
  key_hash     bigint,
  due_at       timestamptz not null,
  scheduled_at timestamptz not null default clock_timestamp()
);
comment on table outbox.scheduled is 'Messages whose time has not come: one narrow row each, the payload stays in outbox.message.';
comment on column outbox.scheduled.key_hash is 'Hash of topic and key; NULL: no key, so no order.';
comment on index outbox.scheduled_pkey is 'Serves settle: a message is scheduled once. Serves purge: skips what is scheduled.';
create index scheduled_due on outbox.scheduled (due_at, seq);
comment on index outbox.scheduled_due is 'Serves the relay: is one due, which ones. Serves scheduled list.';
create index scheduled_id on outbox.scheduled (id);
comment on index outbox.scheduled_id is 'Serves scheduled cancel by message id.';

-- What applications and operators took back. The relay looks here when a message's time comes, and notes it in outbox.held_action.
create table outbox.cancelled (
  id           uuid primary key,
  cancelled_at timestamptz not null default clock_timestamp(),
  who          text not null,
  why          text not null
);
comment on table outbox.cancelled is 'Scheduled messages that are not to be delivered.';
comment on index outbox.cancelled_pkey is 'Serves the relay: was a message whose time has come cancelled.';

-- Takes a scheduled intent back, within the caller's transaction. True: it is not delivered, provided that this transaction commits
-- before deliver_after. False: there is no such scheduled intent, or its time has come.
--   select outbox.cancel('0197..', why => 'order 17 was withdrawn');
-- Runs with its owner's rights because a writer may not read intents; whoever may write intents may cancel those whose id it knows.
create function outbox.cancel(id uuid, why text default 'cancelled by the application') returns boolean
  language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
begin
  if not exists (
    select from outbox.message m
    where m.id = cancel.id and m.deliver_after is not null and m.deliver_after > clock_timestamp()
  ) then
    return false;
  end if;
  insert into outbox.cancelled as c (id, who, why)
  values (cancel.id, session_user, coalesce(nullif(cancel.why, ''), 'cancelled by the application'))
  -- Of an id that is used again after a cancellation, only what was written before the last one is cancelled.
  on conflict on constraint cancelled_pkey do update
  set cancelled_at = excluded.cancelled_at, who = excluded.who, why = excluded.why;
  return true;
end
$$;
comment on function outbox.cancel(uuid, text) is 'Takes a scheduled intent back; false if it is too late or there is none.';
revoke execute on function outbox.cancel(uuid, text) from public;

-- ---------------------------------------------------------------------------------------------------------------------
-- What operators change, and what the relay knows about itself.

-- Two indexes began with the topic, and with fresh statistics the release of held messages took this one and sorted all of a topic's
-- messages. Its predicate is one that only the question whether a message is due asks in these words.
drop index outbox.held_topic_due;
create index held_topic_due on outbox.held (topic, due_at) where coalesce(state in ('retry', 'topic'), false);
comment on index outbox.held_topic_due is 'Serves the question whether a held message is due, topic by topic.';

alter table outbox.held add column dead_letter text;
comment on column outbox.held.dead_letter is 'Where the copy of a parked message is: topic[partition]@offset.';

-- An intent is never changed: what an operator changed about a held message stands here and is applied when it is published.
create table outbox.held_edit (
  seq       bigint primary key,
  edited    text[] not null check (edited <@ '{topic,partition,headers,payload}'),
  topic     text,
  partition integer,
  headers   jsonb,
  payload   bytea,
  edited_at timestamptz not null default clock_timestamp()
);
comment on table outbox.held_edit is 'What is published instead of what the intent says; kept as long as the intent.';
comment on column outbox.held_edit.edited is 'Which of the columns count: a NULL in the others means nothing.';
comment on index outbox.held_edit_pkey is 'Serves the release of held messages, held show, and purge.';

alter table outbox.held_action drop constraint held_action_kind_check;
alter table outbox.held_action
  add constraint held_action_kind_check check (kind in ('retry', 'discard', 'edit', 'cancel', 'sweep')),
  add column details jsonb;
comment on column outbox.held_action.details is 'edit: what was changed, without payloads.';
comment on table outbox.held_action is
  'Audit: who retried, edited, discarded or cancelled which message, and why; what the sweep found.';

-- What operators did to the outbox as a whole. Never purged.
create table outbox.operation (
  operation bigint generated always as identity primary key,
  at        timestamptz not null default clock_timestamp(),
  kind      text not null check (kind in ('rebase')),
  who       text not null,
  why       text not null,
  details   jsonb not null
);
comment on table outbox.operation is 'Audit: what operators did to the outbox as a whole, and why.';
comment on index outbox.operation_pkey is 'Serves people who read the audit in order.';

alter table outbox.cursor
  add column kafka_cluster text,
  add column terms_unsettled integer not null default 0 check (terms_unsettled >= 0),
  add column trial_seq bigint,
  add column trials integer not null default 0 check (trials >= 0);
comment on column outbox.cursor.kafka_cluster is 'The Kafka cluster that this outbox is published to; NULL until a relay reached one.';
comment on column outbox.cursor.terms_unsettled is 'Terms in a row that ended with neither a settle nor an orderly end.';
comment on column outbox.cursor.trial_seq is 'The message of the attempt that was started last and has not finished; NULL: none.';
comment on column outbox.cursor.trials is 'How many attempts of that message were started and not finished.';

-- Where the sweep stands, one row.
create table outbox.sweep (
  singleton    boolean primary key default true check (singleton),
  swept_to     bigint not null default 0,
  lap_began_at timestamptz not null default clock_timestamp(),
  lap_ended_at timestamptz,
  laps         bigint not null default 0,
  found        bigint not null default 0
);
comment on table outbox.sweep is 'The sweep compares messages below the cursor with receipts, in laps over the table.';
comment on column outbox.sweep.swept_to is 'Messages up to this seq were compared in this lap.';
comment on column outbox.sweep.found is 'Messages that the cursor had passed and nobody had delivered. Always 0, or something is badly wrong.';
comment on index outbox.sweep_pkey is 'Keeps the sweep a single row.';
insert into outbox.sweep default values;

-- Receipts out of order span less than 4096 places each, so that whoever looks for a place knows where to begin. Rows of before:
create index receipt_wide on outbox.receipt (seq_first) where out_of_order and seq_last - seq_first >= 4096;
comment on index outbox.receipt_wide is 'Serves the sweep: receipts out of order that are wider, written by an earlier version.';

-- ---------------------------------------------------------------------------------------------------------------------
-- Whoever had a part of 0001 has it still. The same grants as `outboxd migrate grants` gives.
do $$
declare
  place constant text := quote_ident('outbox'::name);
  granted record;
  grants text[];
  one text;
begin
  for granted in
    select g.part, case when g.grantee = 0 then 'public' else g.grantee::regrole::text end as grantee from outbox.granted_before g
  loop
    grants := case granted.part
      when 'writer' then array[
        'insert (deliver_after, idempotency_key), select (idempotency_key) on %1$s.message',
        'execute on function '
          '%1$s.emit(text, bytea, text, jsonb, integer, text, text, text, text, text, uuid, timestamptz, text), '
          '%1$s.emit(text, text, text, jsonb, integer, text, text, text, text, text, uuid, timestamptz, text), '
          '%1$s.emit(text, jsonb, text, jsonb, integer, text, text, text, text, text, uuid, timestamptz, text), '
          '%1$s.cancel(uuid, text)']
      when 'relay' then array[
        'select, insert, delete on %1$s.scheduled',
        'select, insert, update, delete on %1$s.cancelled',
        'select, insert, update, delete on %1$s.held_edit',
        'select, insert on %1$s.operation',
        'select, update on %1$s.sweep']
      else array[
        'select (deliver_after, idempotency_key) on %1$s.message',
        'select on %1$s.scheduled, %1$s.cancelled, %1$s.operation, %1$s.sweep',
        'select (seq, edited, topic, partition, edited_at) on %1$s.held_edit']
      end;
    foreach one in array grants loop
      execute format('grant ' || one || ' to %2$s', place, granted.grantee);
    end loop;
  end loop;
end
$$;

drop table outbox.granted_before;

insert into outbox.migration (version, name) values (2, 'delivery');
