-- What is held, and why?
-- Filters: $1 id, $2 topic (as LIKE has it), $3 state, $4 reason, $5 key hash, $6 and $7 microseconds since it was held, at least
-- and at most; NULL means any. $8: at most so many; NULL means all.
-- Followers and heads are looked for over all held messages of the keys that are shown, before filtering. held_pkey serves the walk,
-- held_id a look-up by id, held_key_hash_seq the keys. Envelope by seq, and no column of an edit that holds the application's data, so
-- that no right to key or payload is needed.
with shown as materialized (
  select h.*
  from outbox.held h
  where ($1::uuid is null or h.id = $1)
    and ($2::text is null or h.topic like $2)
    and ($3::text is null or h.state = $3)
    and ($4::text is null or h.reason = $4)
    and ($5::bigint is null or h.key_hash = $5)
    and ($6::bigint is null or h.held_at <= clock_timestamp() - make_interval(secs => $6 / 1000000.0))
    and ($7::bigint is null or h.held_at > clock_timestamp() - make_interval(secs => $7 / 1000000.0))
  order by h.seq
  limit $8
), ranked as materialized (
  select k.seq,
    count(*) over (partition by k.key_hash order by k.seq rows between 1 following and unbounded following) as followers,
    first_value(k.seq) over (partition by k.key_hash order by k.seq) as head_seq,
    first_value(k.id) over (partition by k.key_hash order by k.seq) as head_id
  from outbox.held k
  where k.key_hash in (select s.key_hash from shown s)
)
select s.seq, s.id, e.correlation_id, s.topic, s.key_hash, s.state, s.reason, s.error, s.attempts, s.failures, s.held_at,
  coalesce(r.followers, 0) as followers, nullif(r.head_seq, s.seq) as head_seq, r.head_id, s.dead_letter,
  e.created_at, e.payload_bytes, d.edited, d.edited_at,
  -- Only a retry happens by itself at its time; a topic is looked up, followers and parked messages wait for something else.
  case when s.state = 'retry' then s.due_at end as due_at
from shown s
join outbox.envelope e on e.seq = s.seq
left join ranked r on r.seq = s.seq
left join outbox.held_edit d on d.seq = s.seq
order by s.seq
