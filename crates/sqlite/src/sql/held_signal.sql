-- Do held messages need attention, or has a scheduled one's time come? Asked a few times a second, with a million messages held too: outbox_held_due is walked
-- topic by topic, never row by row.
-- ?1 topics that cannot be written to, as a JSON array
with recursive waiting (topic) as (
  select min(topic) from outbox_held where state in ('retry', 'topic')
  union all
  select (select min(h.topic) from outbox_held as h where h.state in ('retry', 'topic') and h.topic > waiting.topic)
  from waiting
  where waiting.topic is not null
)
select
  (select count(*) from outbox_held) + exists (select 1 from outbox_scheduled) as messages,
  coalesce((select min(due_at) <= strftime('%Y-%m-%dT%H:%M:%fZ', 'now') from outbox_scheduled), 0) or exists (
    select 1 from waiting
    where waiting.topic is not null
      and waiting.topic not in (select value from json_each(?1))
      and exists (
        select 1 from outbox_held as h
        where h.state in ('retry', 'topic') and h.topic = waiting.topic
          and h.due_at <= strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
  ) as due,
  (select coalesce(max(action), 0) from outbox_held_action where kind <> 'cancel') as actions
