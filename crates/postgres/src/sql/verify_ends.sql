-- From where to where are there messages that may have been dispatched? Index: message_pkey.
select (select min(m.seq) from outbox.message m) as first, c.high from outbox.cursor c where c.singleton
