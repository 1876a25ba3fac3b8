-- Where does dispatching start, and which keys have held messages? One row per such key, at least one; none if the term
-- ($1 epoch, $2 nonce) is over. One statement, so that the counts and the number of operator actions belong together.
select c.high, c.seen::text as seen, c.pos, c.until::text as until, c.xid_bound::text as xid_bound, a.actions, h.key_hash, h.messages
from outbox.cursor c
cross join (
  -- Operators' transactions may commit in another order than they took their numbers: the count of the last hundred changes when
  -- one of them comes late.
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
where c.singleton and c.epoch = $1 and c.nonce = $2
