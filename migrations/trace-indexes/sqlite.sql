-- The indexes that `outboxd trace` uses on outbox_message. Optional: every insert pays for each of them; docs/trace.md has the
-- figures, and what trace does without them.
--
-- What an operator sees: SQLite has one writer, so the application's writes wait while one index is built, about a second for a million
-- intents (busy_timeout has to be longer than that); between two indexes they go on.
--
-- With outboxd:  outboxd migrate trace-indexes     (away again: --drop; only show the SQL: --dry-run)
-- With sqlite3:  sqlite3 -bail app.db '.read sqlite.sql'
--
-- An index of SQLite ends with the rowid, which is seq: all messages of one correlation are read in order.

-- Serves trace: the messages of a message id. As it was written: text in lower or upper case, or a blob of 16 bytes.
create index if not exists outbox_message_id on outbox_message (id);

-- Serves trace: the messages of a correlation id.
create index if not exists outbox_message_correlation on outbox_message (correlation_id);

-- Serves trace: the messages that a message caused.
create index if not exists outbox_message_causation on outbox_message (causation_id) where causation_id is not null;

-- Serves trace: the messages of a trace id. traceparent is 00-<trace id>-<span id>-<flags>.
create index if not exists outbox_message_trace on outbox_message (substr(traceparent, 4, 32)) where traceparent is not null;

-- Serves trace: the messages of a key.
create index if not exists outbox_message_key on outbox_message (key) where key is not null;
