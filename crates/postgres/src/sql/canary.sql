-- Writes a canary for topic $1, as an application writes an intent.
select outbox.canary($1) as id
