-- Who asked for the replays of these numbers (?1, a JSON array), and why? By primary key.
select json_object('replay', r.replay, 'who', r.who, 'why', r.why, 'requested_at', r.requested_at, 'to_topic', r.to_topic) as replay
from json_each(?1) as a
cross join outbox_replay as r on r.replay = a.value
