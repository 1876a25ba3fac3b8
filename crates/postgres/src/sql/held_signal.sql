-- Is a held message due now? Asked a few times a second, for topics other than $1. Messages that wait for their topic are looked at
-- only if $2 says that the answer may have changed: there may be many, all of topics that cannot be written to.
-- held_due_at serves both halves of `due`, held_action_pkey the rest.
select
  exists (
    select from outbox.held h where h.state in ('retry', 'topic') and h.due_at <= now() and h.topic <> all ($1::text[])
  ) as due,
  $2 and exists (
    select from outbox.held h where h.state in ('retry', 'topic') and h.due_at is null and h.topic <> all ($1::text[])
  ) as topic_due,
  -- Operators' transactions may commit in another order than they took their numbers: see lead_start.sql.
  (
    select coalesce(max(r.last), 0) * 128 + count(r.action)
    from (
      select t.action, m.last
      from (select max(t.action) as last from outbox.held_action t) m
      join outbox.held_action t on t.action > m.last - 100
    ) r
  ) as actions
