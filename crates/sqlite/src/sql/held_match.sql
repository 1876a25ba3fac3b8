-- How many held messages are meant, how many of them wait behind another one, and which is the last of them?
-- ?1 id, ?2 topic (as GLOB has it), ?3 state, ?4 reason, ?5 key hash, ?6 and ?7 seconds since it was held, at least and at most
-- (NULL: any), ?8 at most so many (-1: all)
select count(*) as messages, count(*) filter (where state = 'behind') as behind, max(seq) as last
from (
  select h.seq, h.state
  from outbox_held as h
  where (?1 is null or h.id = ?1)
  and (?2 is null or h.topic glob ?2)
  and (?3 is null or h.state = ?3)
  and (?4 is null or h.reason = ?4)
  and (?5 is null or h.key_hash = ?5)
  and (?6 is null or h.held_at <= strftime('%Y-%m-%dT%H:%M:%fZ', 'now', printf('-%.3f seconds', ?6)))
  and (?7 is null or h.held_at > strftime('%Y-%m-%dT%H:%M:%fZ', 'now', printf('-%.3f seconds', ?7)))
  order by h.seq
  limit ?8
)
