-- Which topics are in use? Those of the newest 10,000 intents and of held messages.
select r.topic
from (select m.topic from outbox.envelope m order by m.seq desc limit 10000) r
union
select h.topic from outbox.held h
order by 1
