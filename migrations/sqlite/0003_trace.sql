-- outboxd 0003: what trace tells and replay does.
--
-- What an operator sees: new tables, a column and a trigger. Neither messages nor receipts are walked; the audit is, for two indexes
-- and a CHECK. It holds one row for a message that an operator acted on, so the write lock is held for some milliseconds, and longer
-- where there are millions of them. The indexes that `outboxd trace` uses are not built here: see `outboxd migrate trace-indexes`.
--
-- With outboxd:  outboxd migrate           (only show the SQL: --dry-run)
-- With sqlite3:  sqlite3 -bail app.db 'begin immediate' '.read 0003_trace.sql' 'commit'

-- A held row that goes leaves its words behind, however it goes. Kept as long as the intent. The primary key serves trace and purge.
create table outbox_hold_history (
  seq         integer not null,
  ended_at    text not null default (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
  id          text not null,
  topic       text not null,
  state       text not null,
  reason      text not null,
  error       text,
  attempts    integer not null,
  -- The last ten failed attempts: [{"at": .., "error": ..}].
  failures    text not null,
  held_at     text not null,
  dead_letter text,
  primary key (seq, ended_at)
) without rowid;
create trigger outbox_held_remember after delete on outbox_held
begin
  insert or replace into outbox_hold_history (seq, id, topic, state, reason, error, attempts, failures, held_at, dead_letter)
  values (old.seq, old.id, old.topic, old.state, old.reason, old.error, old.attempts, old.failures, old.held_at, old.dead_letter);
end;

-- Serves trace and held audit: what was done to a message.
create index outbox_held_action_id on outbox_held_action (id);

-- Serves the relay: has an operator acted since it looked. Cancelled messages were never held, so nobody has to count again for them.
create index outbox_held_action_operator on outbox_held_action (action) where kind <> 'cancel';

-- Who led, and from where. A term without ended_at that another one follows ended without a word: what it had published and not
-- settled was published again.
create table outbox_term (
  epoch    integer primary key,
  relay    text not null,
  led_at   text not null default (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
  -- The cursor when the term began.
  high     integer not null,
  ended_at text
);

-- A relay that went back to the settled cursor within its term, because an outage left open what Kafka had kept. messages: how many
-- of those from seq_first to seq_last.
create table outbox_rewind (
  rewind    integer primary key autoincrement,
  at        text not null default (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
  epoch     integer not null,
  relay     text,
  reason    text not null,
  seq_first integer not null,
  seq_last  integer not null,
  messages  integer not null
);
-- Serves trace: was a message among them.
create index outbox_rewind_seq on outbox_rewind (seq_last);

-- Dispatched messages that are published again on purpose.
create table outbox_replay (
  replay         integer primary key autoincrement,
  -- running: the leader works on it. paused: until it is resumed. stopped: a message could not be published (error). cancelled, done: over.
  state          text not null default 'running' check (state in ('running', 'paused', 'stopped', 'cancelled', 'done')),
  who            text not null,
  why            text not null,
  requested_at   text not null default (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
  -- Which messages: every one of these that is not NULL must be met. seqs: a JSON array. topic: a pattern, * stands for any run of characters.
  seqs           text,
  correlation_id text,
  topic          text,
  key            text,
  created_from   text,
  created_before text,
  -- Looked for from here to there.
  seq_first      integer not null,
  seq_last       integer not null,
  -- Published there instead; NULL: where each message went.
  to_topic       text,
  -- Messages a second at most; NULL: as many as leave live traffic alone.
  rate           integer check (rate > 0),
  -- Messages that were meant when it was requested.
  total          integer not null check (total >= 0),
  -- What is meant up to this seq was published again, or left out by an operator.
  pos            integer not null,
  published      integer not null default 0,
  -- Messages that an operator left out because they could not be published; the audit names them.
  skipped        integer not null default 0,
  -- The term that took it up last, and how many in a row did so and got nowhere.
  taken_epoch    integer,
  takes          integer not null default 0,
  -- The message that could not be published, and why.
  stopped_seq    integer,
  stopped_id     text,
  error          text,
  changed_at     text not null default (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
  changed_by     text
);
-- Serves the relay: what is to be published again, and what waits for an operator.
create index outbox_replay_open on outbox_replay (replay) where state in ('running', 'paused', 'stopped');

-- The replay that these copies belong to; NULL: the messages themselves.
alter table outbox_receipt add column replay integer;

-- The audit takes more kinds: SQLite cannot change a CHECK, so the table is made anew with what it holds.
create table outbox_operation_new (
  operation integer primary key autoincrement,
  at        text not null default (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
  kind      text not null check (kind in ('rebase', 'replay', 'replay pause', 'replay resume', 'replay cancel')),
  who       text not null,
  why       text not null,
  details   text not null
);
insert into outbox_operation_new (operation, at, kind, who, why, details)
  select operation, at, kind, who, why, details from outbox_operation;
drop table outbox_operation;
alter table outbox_operation_new rename to outbox_operation;

insert into outbox_migration (version, name) values (3, 'trace');
