-- How many held messages are meant, how many of them wait behind another one, and which is the last of them?
-- Filters: $1 id, $2 topic (as LIKE has it), $3 state, $4 reason, $5 key hash, $6 and $7 microseconds since it was held, at least
-- and at most; NULL means any. $8: at most so many; NULL means all.
-- One walk over held_pkey: narrow rows, a second for a million.
select count(*) as messages, count(*) filter (where m.state = 'behind') as behind, max(m.seq) as last
from (
  select h.seq, h.state
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
) m
