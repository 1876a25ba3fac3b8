-- Sets the sequence of messages to ?1, so that what is written next is above everything.
insert into sqlite_sequence (name, seq) values ('outbox_message', ?1)
