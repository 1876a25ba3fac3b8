-- Replays, the newest first: ?1 one of them, NULL: any; ?2 at most so many, -1: all.
select replay, state, who, why, requested_at, json_array_length(seqs) as named, correlation_id, topic, created_from, created_before,
  seq_first, seq_last, to_topic, rate, total, published, skipped, pos, error, stopped_seq, stopped_id, changed_at, changed_by
from outbox_replay
where ?1 is null or replay = ?1
order by replay desc
limit ?2
