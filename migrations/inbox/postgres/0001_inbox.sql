-- outboxd inbox 0001: what consumers have handled.
--
-- For the database of a consumer; it needs no outbox there. What an operator sees: new objects in schema "inbox", nothing else is
-- touched or locked; well under a second. Needs PostgreSQL 13 or later and CREATE on the database, or a schema "inbox" that
-- exists and belongs to the role that runs this. No extension, no superuser.
--
-- With outboxd:  outboxd migrate --inbox           (another schema: --schema x; only show the SQL: --dry-run)
-- With psql:     psql -1 -v ON_ERROR_STOP=1 -f 0001_inbox.sql
-- Then grant:    outboxd migrate grants --consumer shipping

do $$
begin
  if not exists (select from pg_catalog.pg_namespace where nspname = 'inbox'::name) then
    create schema inbox;
  end if;
end
$$;

-- One row for each message that a consumer has handled, written in the transaction of what it did.
create table inbox.handled (
  consumer          text not null,
  id                uuid not null,
  claimed_at        timestamptz not null default clock_timestamp(),
  correlation_id    text,
  topic             text,
  partition         integer,
  record_offset     bigint,
  duplicates        integer not null default 0,
  last_duplicate_at timestamptz,
  primary key (consumer, id)
);
comment on table inbox.handled is 'Messages that a consumer has handled: each takes effect once, however often it is delivered.';
comment on column inbox.handled.consumer is 'Who handles: consumers of different names each handle a message once.';
comment on column inbox.handled.id is 'Message id: the header "id" of the record.';
comment on column inbox.handled.record_offset is 'Place of the copy that took effect: topic, partition and offset.';
comment on column inbox.handled.duplicates is 'How many further copies came and changed nothing.';
comment on index inbox.handled_pkey is 'Serves the claim: has this consumer handled this message.';
create index handled_claimed_at on inbox.handled (claimed_at);
comment on index inbox.handled_claimed_at is 'Serves the purge: the oldest first.';

-- ---------------------------------------------------------------------------------------------------------------------
-- claim: true if this consumer has not handled the message yet: go on. false: it has; this copy must change nothing.
--
--   begin;
--   select inbox.claim('shipping', '0198c5a4-7a0e-7c9e-b9f1-3d6a0a6f2b11');
--   -- true: what the message asks for, in this transaction
--   commit;
--   -- and only now acknowledge the record to Kafka, whichever it was
--
-- A claim lasts if its transaction commits, together with what was done in it. While one transaction holds the claim, another that
-- claims the same message waits for its end: after a rollback it is true for the second one, after a commit it is false under READ
-- COMMITTED and a serialization failure (40001: roll back and try again) under REPEATABLE READ and SERIALIZABLE.
create function inbox.claim(
  consumer text,
  id uuid,
  topic text default null,
  partition integer default null,
  record_offset bigint default null,
  correlation_id text default null
) returns boolean
  language plpgsql volatile security invoker set search_path = pg_catalog, pg_temp
as $$
begin
  if coalesce(claim.consumer, '') = '' or octet_length(claim.consumer) > 200 then
    raise exception using errcode = 'invalid_parameter_value',
      message = 'inbox refuses this claim: the consumer has no name, or one of more than 200 bytes',
      hint = 'Name what handles the message: ''shipping''. The name stays the same from release to release.';
  elsif claim.id is null then
    raise exception using errcode = 'invalid_parameter_value',
      message = 'inbox refuses this claim: the message has no id',
      hint = 'Give the header "id" of the record. A record without one was not published by outboxd: set it aside yourself.';
  end if;
  insert into inbox.handled as h (consumer, id, topic, partition, record_offset, correlation_id)
  values (claim.consumer, claim.id, claim.topic, claim.partition, claim.record_offset, claim.correlation_id)
  on conflict do nothing;
  if found then
    return true;
  end if;
  update inbox.handled as h set duplicates = h.duplicates + 1, last_duplicate_at = clock_timestamp()
  where h.consumer = claim.consumer and h.id = claim.id;
  return false;
end
$$;
comment on function inbox.claim(text, uuid, text, integer, bigint, text) is
  'Claims a message for a consumer in its transaction: true if it is to be handled, false if it was.';
revoke execute on function inbox.claim(text, uuid, text, integer, bigint, text) from public;

-- purge: forgets messages that were handled longer ago than that, at most so many in one call, and says how many. A copy that
-- comes after its message was forgotten takes effect again: keep more than the topic's retention. A message of which copies still
-- come is kept.
create function inbox.purge(older_than interval, rows integer default 10000) returns bigint
  language plpgsql volatile security invoker set search_path = pg_catalog, pg_temp
as $$
declare
  before timestamptz := clock_timestamp() - older_than;
  forgotten bigint;
begin
  if before is null or before > clock_timestamp() or coalesce(purge.rows, 0) < 1 then
    raise exception using errcode = 'invalid_parameter_value',
      message = 'inbox refuses this purge: it takes an age and a number of rows',
      hint = 'Give an age above the retention of the topics: select inbox.purge(interval ''30 days'', 10000)';
  end if;
  -- Rows that another purge or a claim has locked are left for the next time.
  delete from inbox.handled where ctid = any(array(
    select h.ctid from inbox.handled as h
    where h.claimed_at < before and (h.last_duplicate_at is null or h.last_duplicate_at < before)
    order by h.claimed_at limit purge.rows for update skip locked));
  get diagnostics forgotten = row_count;
  return forgotten;
end
$$;
comment on function inbox.purge(interval, integer) is 'Forgets messages that were handled longer ago than that.';
revoke execute on function inbox.purge(interval, integer) from public;

-- Which migrations were applied. checksum is NULL where a file was applied with another tool than outboxd.
create table inbox.migration (
  version    integer primary key,
  name       text not null,
  checksum   text,
  applied_at timestamptz not null default clock_timestamp(),
  applied_by text not null default current_user
);
comment on table inbox.migration is 'Migrations of the inbox that were applied.';
comment on index inbox.migration_pkey is 'Serves migrate: which version is installed.';

insert into inbox.migration (version, name) values (1, 'inbox');
