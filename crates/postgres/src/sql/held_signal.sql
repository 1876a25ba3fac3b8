-- Is a held or a scheduled message due now? Asked a few times a second, for topics other than $1: two probes of held_topic_due (the
-- words of its predicate choose it) for each topic of messages that may be due. A topic that cannot be written to may have a million
-- of them, which are not looked at.
with recursive topics (topic) as (
  (select h.topic from outbox.held h where h.state in ('retry', 'topic') order by h.topic limit 1)
  union all
  select (select h.topic from outbox.held h where h.state in ('retry', 'topic') and h.topic > t.topic order by h.topic limit 1)
  from topics t
  where t.topic is not null
)
select
  -- Exact up to a hundred: more is not asked for.
  (select count(*) from (select from outbox.held h order by h.seq limit 100) first)
    + (select count(*) from (select from outbox.scheduled s order by s.due_at limit 1) first) as messages,
  -- One probe of scheduled_due, however many there are.
  coalesce((select s.due_at <= now() from outbox.scheduled s order by s.due_at limit 1), false) or exists (
    select
    from topics t
    where t.topic <> all ($1::text[])
      -- Each a probe; as `exists` they would be hashed, and all that is due be read for that.
      and coalesce(
        (select true from outbox.held h where h.topic = t.topic and coalesce(h.state in ('retry', 'topic'), false) and h.due_at <= now() limit 1),
        -- These wait for nothing but their topic.
        (select true from outbox.held h where h.topic = t.topic and coalesce(h.state in ('retry', 'topic'), false) and h.due_at is null limit 1),
        false)
  ) as due,
  (select a.actions from outbox.operator_actions a) as actions
