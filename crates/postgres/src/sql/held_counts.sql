-- How many messages are held per key, and which operator action is the last that these counts reflect? At least one row.
select a.actions, h.key_hash, h.messages
from (
  select coalesce(max(r.last), 0) * 128 + count(r.action) as actions
  from (
    select t.action, m.last
    from (select max(t.action) as last from outbox.held_action t) m
    join outbox.held_action t on t.action > m.last - 100
  ) r
) a
left join (
  select h.key_hash, count(*) as messages from outbox.held h where h.key_hash is not null group by h.key_hash
) h on true
