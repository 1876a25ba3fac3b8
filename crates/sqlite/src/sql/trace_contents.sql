-- Key, headers and payload of these intents (?1, a JSON array of seqs), by primary key.
select m.seq, m.key, m.headers, cast(m.payload as blob) as payload
from json_each(?1) as a
cross join outbox_message as m on m.seq = a.value
order by m.seq
