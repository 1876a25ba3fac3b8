-- Who did what to which held message, and why? The newest first.
-- ?1 id, ?2 topic (as GLOB has it), ?3 kind, ?4 who, ?5 and ?6 seconds since then, at least and at most (NULL: any), ?7 at most so many
-- (-1: all)
select at, kind, id, seq, topic, reason_held, correlation_id, who, why, details
from outbox_held_action
where (?1 is null or id = ?1)
  and (?2 is null or topic glob ?2)
  and (?3 is null or kind = ?3)
  and (?4 is null or who = ?4)
  and (?5 is null or at <= strftime('%Y-%m-%dT%H:%M:%fZ', 'now', printf('-%.3f seconds', ?5)))
  and (?6 is null or at > strftime('%Y-%m-%dT%H:%M:%fZ', 'now', printf('-%.3f seconds', ?6)))
order by action desc
limit ?7
