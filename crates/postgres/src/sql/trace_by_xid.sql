-- Which intents did the transaction $1 write? The first $2. Index message_xid_seq.
select to_jsonb(e) as intent
from outbox.envelope e
where e.xid = $1::text::xid8
order by e.seq
limit $2
