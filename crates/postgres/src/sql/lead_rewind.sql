-- Keeps which messages may have been published twice within a term: $1 epoch, $2 relay, $3 why, from $4 to $5, $6 messages.
insert into outbox.rewind (epoch, relay, reason, seq_first, seq_last, messages) values ($1, $2, $3, $4, $5, $6)
