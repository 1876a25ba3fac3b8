-- How many messages are held, by state and reason? Of those above $1, at most $2: held_pkey serves the walk, a page a call.
select h.state, h.reason, count(*) as messages, max(h.seq) as last
from (select i.seq, i.state, i.reason from outbox.held i where i.seq > $1 order by i.seq limit $2) h
group by h.state, h.reason
