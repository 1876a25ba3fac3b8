-- The newest terms, at most ?1.
select epoch, led_at, ended_at from outbox_term order by epoch desc limit ?1
