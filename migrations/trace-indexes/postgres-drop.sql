-- Takes the indexes away that `outboxd trace` uses. Nobody waits, as in postgres.sql.
--
-- With outboxd:  outboxd migrate trace-indexes --drop
-- With psql:     psql -v ON_ERROR_STOP=1 -f postgres-drop.sql       (without -1)

drop index concurrently if exists outbox.message_id;
drop index concurrently if exists outbox.message_correlation;
drop index concurrently if exists outbox.message_causation;
drop index concurrently if exists outbox.message_trace;
drop index concurrently if exists outbox.message_key;
