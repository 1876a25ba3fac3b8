-- Which topics do intents name? The newest 10,000 of them, and held ones (whose own rows name the topic that their route made of it).
select r.topic
from (select m.topic from outbox.envelope m order by m.seq desc limit 10000) r
union
select i.topic from outbox.held h join outbox.envelope i on i.seq = h.seq
order by 1
