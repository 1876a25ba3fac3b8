-- Begins a term: the next epoch with a random nonce ($1), for relay $2. The commit is synchronous although the session's
-- settles are not: a crash that took an epoch back would let two leaders have the same.
with synchronous as (select set_config('synchronous_commit', 'on', true))
update outbox.cursor c
set epoch = c.epoch + 1,
  nonce = $1,
  relay = $2,
  -- Until it settles something.
  terms_unsettled = c.terms_unsettled + 1,
  led_at = clock_timestamp(),
  system_identifier = (select s.system_identifier from pg_control_system() s)
from synchronous
where c.singleton
returning c.epoch
