-- Who did what to which held message, and why? The newest first, at most $7 (NULL: all). Filters: $1 id, $2 topic (as LIKE has it),
-- $3 kind, $4 who, $5 and $6 microseconds since then, at least and at most; NULL means any. held_action_pkey serves the walk.
select a.at, a.kind, a.id, a.seq, a.topic, a.reason_held, a.correlation_id, a.who, a.why, a.details
from outbox.held_action a
where ($1::uuid is null or a.id = $1)
  and ($2::text is null or a.topic like $2)
  and ($3::text is null or a.kind = $3)
  and ($4::text is null or a.who = $4)
  and ($5::bigint is null or a.at <= clock_timestamp() - make_interval(secs => $5 / 1000000.0))
  and ($6::bigint is null or a.at > clock_timestamp() - make_interval(secs => $6 / 1000000.0))
order by a.action desc
limit $7
