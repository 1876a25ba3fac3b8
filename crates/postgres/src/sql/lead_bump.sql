-- Begins a term: the next epoch with a random nonce ($1), for relay $2. The commit is synchronous although the session's
-- settles are not: a crash that took an epoch back would let two leaders have the same.
with synchronous as (
  select set_config('synchronous_commit', 'on', true)
), bumped as (
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
  returning c.epoch, c.relay, c.led_at, c.high
), remembered as (
  -- An epoch that stands there was led before a restore took the cursor back.
  insert into outbox.term as t (epoch, relay, led_at, high)
  select b.epoch, b.relay, b.led_at, b.high from bumped b
  on conflict (epoch) do update set relay = excluded.relay, led_at = excluded.led_at, high = excluded.high, ended_at = null
)
select b.epoch from bumped b
