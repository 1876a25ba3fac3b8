-- outboxd 0003: what trace tells and replay does.
--
-- What an operator sees: new tables, a column and a trigger. Neither messages nor receipts are walked; the audit is: held_action for
-- two indexes, operation for its check. Operators' commands write these, one row for a message that they act on, so the locks are
-- held for some milliseconds, and longer where the audit holds millions of rows. Roles that were granted a part of the outbox are
-- granted the new objects too. The indexes that `outboxd trace` uses are not built here, because each costs the application's commits:
-- see `outboxd migrate trace-indexes`.
--
-- With outboxd:  outboxd migrate
-- With psql:     psql -1 -v ON_ERROR_STOP=1 -f 0003_trace.sql
--
-- A relay of the version before goes on working with this schema; what it does meanwhile lacks its part of the history.

-- ---------------------------------------------------------------------------------------------------------------------
-- History: nothing here decides what is dispatched.

-- A held row that goes leaves its words behind, however it goes.
create table outbox.hold_history (
  seq         bigint not null,
  ended_at    timestamptz not null default clock_timestamp(),
  id          uuid not null,
  topic       text not null,
  state       text not null,
  reason      text not null,
  error       text,
  attempts    integer not null,
  failures    jsonb not null,
  held_at     timestamptz not null,
  dead_letter text,
  primary key (seq, ended_at)
);
comment on table outbox.hold_history is 'Messages that were held, until they were dispatched or discarded. Kept as long as the intent.';
comment on column outbox.hold_history.failures is 'The last ten failed attempts: [{"at": .., "error": ..}].';
comment on index outbox.hold_history_pkey is 'Serves trace: how a message was held. Serves purge.';

create function outbox.remember_held() returns trigger
  language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
begin
  insert into outbox.hold_history (seq, id, topic, state, reason, error, attempts, failures, held_at, dead_letter)
  select g.seq, g.id, g.topic, g.state, g.reason, g.error, g.attempts, g.failures, g.held_at, g.dead_letter from gone g;
  return null;
end
$$;
comment on function outbox.remember_held() is 'Keeps the words of held rows that go.';

-- Once a statement, for all of its rows.
create trigger remember_held after delete on outbox.held
  referencing old table as gone
  for each statement execute function outbox.remember_held();

create index held_action_id on outbox.held_action (id);
comment on index outbox.held_action_id is 'Serves trace and held audit: what was done to a message.';

-- Who led, and from where. A term without ended_at that another one follows ended without a word: what it had published and not
-- settled was published again.
create table outbox.term (
  epoch    bigint primary key,
  relay    text not null,
  led_at   timestamptz not null default clock_timestamp(),
  high     bigint not null,
  ended_at timestamptz
);
comment on table outbox.term is 'Terms of leadership: which relay, when, and whether it ended in order.';
comment on column outbox.term.high is 'The cursor when the term began.';
comment on index outbox.term_pkey is 'Serves trace: the term that a receipt names, and those around it. Serves purge.';

-- A relay that went back to the settled cursor within its term, because an outage left open what Kafka had kept.
create table outbox.rewind (
  rewind    bigint generated always as identity primary key,
  at        timestamptz not null default clock_timestamp(),
  epoch     bigint not null,
  relay     text,
  reason    text not null,
  seq_first bigint not null,
  seq_last  bigint not null,
  messages  bigint not null
);
comment on table outbox.rewind is 'Messages that a relay may have published twice within a term, and why.';
comment on column outbox.rewind.messages is 'How many of the messages from seq_first to seq_last.';
comment on index outbox.rewind_pkey is 'Serves purge: the oldest first.';
create index rewind_seq on outbox.rewind (seq_last);
comment on index outbox.rewind_seq is 'Serves trace: was a message among them.';

-- ---------------------------------------------------------------------------------------------------------------------
-- Replay: dispatched messages that are published again on purpose.

create table outbox.replay (
  replay         bigint generated always as identity primary key,
  state          text not null default 'running' check (state in ('running', 'paused', 'stopped', 'cancelled', 'done')),
  who            text not null,
  why            text not null,
  requested_at   timestamptz not null default clock_timestamp(),
  -- Which messages: every one of these that is not NULL must be met.
  seqs           bigint[],
  correlation_id text,
  topic          text,
  key            text,
  created_from   timestamptz,
  created_before timestamptz,
  -- Looked for from here to there.
  seq_first      bigint not null,
  seq_last       bigint not null,
  -- How.
  to_topic       text,
  rate           integer check (rate > 0),
  -- How far it is.
  total          bigint not null check (total >= 0),
  pos            bigint not null,
  published      bigint not null default 0,
  skipped        bigint not null default 0,
  -- The term that took it up last, and how many in a row did so and got nowhere.
  taken_epoch    bigint,
  takes          integer not null default 0,
  -- The message that could not be published, and why.
  stopped_seq    bigint,
  stopped_id     uuid,
  error          text,
  changed_at     timestamptz not null default clock_timestamp(),
  changed_by     text
);
comment on table outbox.replay is 'Requests to publish dispatched messages again: who, why, which, and how far.';
comment on column outbox.replay.state is
  'running: the leader works on it. paused: until it is resumed. stopped: a message could not be published (error). cancelled, done: over.';
comment on column outbox.replay.topic is 'A pattern: * stands for any run of characters.';
comment on column outbox.replay.seqs is 'These and no others, because they are few; NULL: whatever meets the other conditions.';
comment on column outbox.replay.to_topic is 'Published there instead; NULL: where each message went.';
comment on column outbox.replay.rate is 'Messages a second at most; NULL: as many as leave live traffic alone.';
comment on column outbox.replay.total is 'Messages that were meant when it was requested.';
comment on column outbox.replay.pos is 'What is meant up to this seq was published again, or left out by an operator.';
comment on column outbox.replay.skipped is 'Messages that an operator left out because they could not be published; the audit names them.';
comment on index outbox.replay_pkey is 'Serves the commands, by the number that they print.';
create index replay_open on outbox.replay (replay) where state in ('running', 'paused', 'stopped');
comment on index outbox.replay_open is 'Serves the relay: what is to be published again, and what waits for an operator.';

alter table outbox.receipt add column replay bigint;
comment on column outbox.receipt.replay is 'The replay that these copies belong to; NULL: the messages themselves.';

alter table outbox.operation drop constraint operation_kind_check;
alter table outbox.operation add constraint operation_kind_check
  check (kind in ('rebase', 'replay', 'replay pause', 'replay resume', 'replay cancel'));

-- ---------------------------------------------------------------------------------------------------------------------
-- Whether an operator has acted: a number that changes whenever one has. Operators' transactions may commit in another order than they
-- took their numbers; the count of the last five thousand changes when one of them comes late. Cancelled messages were never held, so
-- nobody has to count again for them.
create index held_action_operator on outbox.held_action (action) where kind <> 'cancel';
comment on index outbox.held_action_operator is 'Serves operator_actions.';
create view outbox.operator_actions as
  select coalesce(max(r.last), 0) * 8192 + count(r.action) as actions
  from (
    select t.action, m.last
    from (select max(a.action) as last from outbox.held_action a where a.kind <> 'cancel') m
    join outbox.held_action t on t.action > m.last - 5000 and t.kind <> 'cancel'
  ) r;
comment on view outbox.operator_actions is 'A number that changes whenever an operator has acted on held messages.';

-- ---------------------------------------------------------------------------------------------------------------------
-- Verify: what messages look like at Kafka. Runs with its owner's rights, as the envelope does: a role that may read it compares payloads
-- and keys without seeing one. A hash gives away what can be guessed, and no more.
create view outbox.fingerprint as
  select m.seq, m.id, m.topic, m.created_at, sha256(convert_to(m.key, 'UTF8')) as key_sha256, sha256(m.payload) as payload_sha256,
         e.seq is not null as is_edited, sha256(e.payload) as edited_sha256
  from outbox.message m left join outbox.held_edit e on e.seq = m.seq and 'payload' = any (e.edited);
comment on view outbox.fingerprint is 'Hashes of keys and payloads, and of payloads that operators put in their place.';

-- A message of the relay's own: written as an application writes, and so subject to everything that an application's is. The relay may
-- not write intents; what this writes holds nothing but the time.
create function outbox.canary(topic text) returns uuid
  language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
declare
  message_id uuid;
begin
  insert into outbox.message as m (topic, payload, content_type)
  values (canary.topic, convert_to(json_build_object('canary', clock_timestamp())::text, 'UTF8'), 'application/json')
  returning m.id into strict message_id;
  return message_id;
end
$$;
comment on function outbox.canary(text) is 'Writes a message by which the relay measures its own path; returns its id.';
revoke execute on function outbox.canary(text) from public;

-- ---------------------------------------------------------------------------------------------------------------------
-- Whoever had a part of the outbox has it still. The same grants as `outboxd migrate grants` gives.
do $$
declare
  place constant text := quote_ident('outbox'::name);
  granted record;
  one text;
begin
  for granted in
    select case when bool_or(g.privilege_type = 'DELETE') then 'relay' else 'reader' end as part,
      case when g.grantee = 0 then 'public' else g.grantee::regrole::text end as grantee
    from pg_catalog.pg_class c cross join lateral pg_catalog.aclexplode(c.relacl) g
    where c.oid = 'outbox.held'::regclass and g.grantee <> c.relowner and g.privilege_type in ('SELECT', 'DELETE')
    group by g.grantee
  loop
    foreach one in array case granted.part
      when 'relay' then array[
        'select, insert, delete on %1$s.hold_history, %1$s.rewind',
        'select, insert, update, delete on %1$s.term',
        'select, insert, update on %1$s.replay',
        'select on %1$s.operator_actions',
        'select on %1$s.fingerprint',
        'execute on function %1$s.canary(text)']
      else array[
        'select on %1$s.hold_history, %1$s.rewind, %1$s.term',
        'select on %1$s.fingerprint',
        'select (replay, state, who, why, requested_at, seqs, correlation_id, topic, created_from, created_before, seq_first, seq_last, '
          'to_topic, rate, total, pos, published, skipped, taken_epoch, takes, stopped_seq, stopped_id, error, changed_at, changed_by) on %1$s.replay']
      end
    loop
      execute format('grant ' || one || ' to %2$s', place, granted.grantee);
    end loop;
  end loop;
end
$$;

insert into outbox.migration (version, name) values (3, 'trace');
