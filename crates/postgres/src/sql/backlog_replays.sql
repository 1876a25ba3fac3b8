-- How many replays are open, by state? Index: replay_open.
select r.state, count(*) as replays
from outbox.replay r
where r.state in ('running', 'paused', 'stopped')
group by r.state
order by r.state
