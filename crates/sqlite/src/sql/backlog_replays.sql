-- How many replays are open, by state? Index outbox_replay_open.
select state, count(*) as replays
from outbox_replay
where state in ('running', 'paused', 'stopped')
group by state
order by state
