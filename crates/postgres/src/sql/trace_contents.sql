-- Key, headers and payload of these intents ($1, by seq), by message_pkey. The reader may not ask this.
select m.seq, m.key, m.headers, m.payload
from outbox.message m
where m.seq = any ($1::bigint[])
order by m.seq
