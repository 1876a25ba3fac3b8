-- The indexes that `outboxd trace` uses on outbox.message. Optional: every insert pays for each of them; docs/trace.md has the
-- figures, and what trace does without them.
--
-- What an operator sees: nobody waits. Each index is built CONCURRENTLY, which walks the table twice, waits for the transactions that were
-- open when it began, and cannot run inside a transaction. A build that was interrupted leaves an index that is marked invalid: it
-- is paid for by every insert and used by no query, and this file alone does not repair it; outboxd does.
--
-- With outboxd:  outboxd migrate trace-indexes     (away again: --drop; only show the SQL: --dry-run)
-- With psql:     psql -v ON_ERROR_STOP=1 -f postgres.sql       (without -1)
--
-- seq stands last in each, so that all messages of one correlation are read in order, from either end, and no more of them than asked for.

-- Not unique: outbox.message does not promise that ids are, and a second use must not fail the application's transaction.
create index concurrently if not exists message_id on outbox.message (id);
comment on index outbox.message_id is 'Serves trace: the messages of a message id.';

create index concurrently if not exists message_correlation on outbox.message (correlation_id, seq);
comment on index outbox.message_correlation is 'Serves trace: the messages of a correlation id.';

create index concurrently if not exists message_causation on outbox.message (causation_id, seq) where causation_id is not null;
comment on index outbox.message_causation is 'Serves trace: the messages that a message caused.';

-- traceparent is 00-<trace id>-<span id>-<flags>.
create index concurrently if not exists message_trace on outbox.message (substring(traceparent from 4 for 32), seq) where traceparent is not null;
comment on index outbox.message_trace is 'Serves trace: the messages of a trace id.';

-- A key may be larger than a B-tree takes (2704 bytes), so this is its hash; the query compares the key as well. Not md5(), which a server in
-- FIPS mode refuses, and the insert with it. Not a hash index, which keeps no order: a key's messages may be millions. Without the topic:
-- a key's messages are asked for with it or without, and it is compared afterwards.
create index concurrently if not exists message_key on outbox.message (hashtextextended(key, 0), seq) where key is not null;
comment on index outbox.message_key is 'Serves trace: the messages of a key.';
