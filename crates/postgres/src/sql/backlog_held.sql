-- How many messages are held, by state and reason?
select h.state, h.reason, count(*) as messages
from outbox.held h
group by h.state, h.reason
order by h.state, h.reason
