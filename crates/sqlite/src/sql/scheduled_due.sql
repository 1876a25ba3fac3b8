-- Scheduled messages whose time has come, at most ?1, earliest first, with whether something of their key is held, and who cancelled
-- them and why. outbox_scheduled_due serves the choice, the rest is a probe a message.
select
  s.seq, s.id, s.topic, s.key_hash, m.correlation_id, c.who, c.why,
  exists (select 1 from outbox_held as h where h.key_hash = s.key_hash) as is_behind
from (
  select * from outbox_scheduled where due_at <= strftime('%Y-%m-%dT%H:%M:%fZ', 'now') order by due_at, seq limit ?1
) as s
cross join outbox_message as m on m.seq = s.seq
left join outbox_cancelled as c on c.id = m.id and c.cancelled_at >= m.created_at
order by s.due_at, s.seq
