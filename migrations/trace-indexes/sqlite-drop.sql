-- Takes the indexes away that `outboxd trace` uses.
--
-- With outboxd:  outboxd migrate trace-indexes --drop
-- With sqlite3:  sqlite3 -bail app.db '.read sqlite-drop.sql'

drop index if exists outbox_message_id;
drop index if exists outbox_message_correlation;
drop index if exists outbox_message_causation;
drop index if exists outbox_message_trace;
drop index if exists outbox_message_key;
