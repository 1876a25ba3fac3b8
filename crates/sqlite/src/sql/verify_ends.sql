-- From where to where are there messages that may have been dispatched?
select (select min(seq) from outbox_message) as first, high from outbox_cursor
