-- Brings everything logged so far to disk: this transaction commits synchronously, and the log is written in order.
select pg_logical_emit_message(true, 'outboxd', '') is not null as logged
