-- Replays, the newest first: $1 one of them, NULL: any; $2 at most so many, NULL: all. Index: replay_pkey. Not the key, which a reader may
-- not see.
select r.replay, r.state, r.who, r.why, r.requested_at, cardinality(r.seqs) as named, r.correlation_id, r.topic, r.created_from,
  r.created_before, r.seq_first, r.seq_last, r.to_topic, r.rate, r.total, r.published, r.skipped, r.pos, r.error, r.stopped_seq,
  r.stopped_id, r.changed_at, r.changed_by
from outbox.replay r
where $1::bigint is null or r.replay = $1
order by r.replay desc
limit $2
