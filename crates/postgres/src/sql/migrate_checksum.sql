-- A migration records itself, so that psql and Flyway leave the same trace; what only outboxd knows is added after it.
update outbox.migration set checksum = $2 where version = $1
