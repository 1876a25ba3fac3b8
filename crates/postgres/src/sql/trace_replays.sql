-- Who asked for the replays of these numbers ($1), and why? replay_pkey. Without the key that one may have been asked for, which the
-- reader may not see.
select jsonb_build_object('replay', r.replay, 'who', r.who, 'why', r.why, 'requested_at', r.requested_at, 'to_topic', r.to_topic) as replay
from outbox.replay r
where r.replay = any ($1::bigint[])
