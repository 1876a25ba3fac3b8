-- The newest terms, at most $1. Index: term_pkey.
select t.epoch, t.led_at, t.ended_at from outbox.term t order by t.epoch desc limit $1
