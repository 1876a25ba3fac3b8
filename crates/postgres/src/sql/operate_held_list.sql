-- What is held, and why? Filters: $1 id, $2 topic, $3 state, $4 reason; NULL means any. $5: at most so many; NULL means all.
-- Followers are counted before filtering. Reads held as a whole (narrow rows; an operator asks) and envelope by seq, so that no
-- right to key or payload is needed.
select h.seq, h.id, e.correlation_id, h.topic, h.key_hash, h.state, h.reason, h.error, h.attempts, h.failures, h.held_at, h.dead_letter,
  h.followers, e.created_at, e.payload_bytes,
  -- Only a retry happens by itself at its time; a topic is looked up, followers and parked messages wait for something else.
  case when h.state = 'retry' then h.due_at end as due_at
from (
  select held.*,
    case when held.key_hash is null then 0
      else count(*) over (partition by held.key_hash order by held.seq rows between 1 following and unbounded following)
    end as followers
  from outbox.held
) h
join outbox.envelope e on e.seq = h.seq
where ($1::uuid is null or h.id = $1)
  and ($2::text is null or h.topic = $2)
  and ($3::text is null or h.state = $3)
  and ($4::text is null or h.reason = $4)
order by h.seq
limit $5
