-- Takes back the scheduled intent with id $1; keeps who ($2) did it and why ($3) for the audit. Does what outbox.cancel does, in the
-- name of a person. message_scheduled_id serves the probe. Whether there is one whose time has not come.
with found as materialized (
  select m.seq
  from outbox.message m
  where m.id = $1 and m.deliver_after is not null and m.deliver_after > pg_catalog.clock_timestamp()
  limit 1
), cancelled as (
  insert into outbox.cancelled (id, who, why)
  select $1, $2, $3 from found
  on conflict (id) do update set cancelled_at = excluded.cancelled_at, who = excluded.who, why = excluded.why
)
select exists (select from found) as in_time
