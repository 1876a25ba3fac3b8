-- Do held messages need the loop's attention? Asked a few times a second, for topics other than $1.
-- held_due_at serves both halves of `due`.
select
  (
    exists (select from outbox.held h where h.state in ('retry', 'topic') and h.due_at <= now() and h.topic <> all ($1::text[]))
    or exists (select from outbox.held h where h.state in ('retry', 'topic') and h.due_at is null and h.topic <> all ($1::text[]))
  ) as due,
  (
    select coalesce(max(r.last), 0) * 128 + count(r.action)
    from (
      select t.action, m.last
      from (select max(t.action) as last from outbox.held_action t) m
      join outbox.held_action t on t.action > m.last - 100
    ) r
  ) as actions
