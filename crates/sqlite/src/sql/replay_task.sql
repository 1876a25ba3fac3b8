-- A replay that runs: the one with this number, or the oldest. ?1 number, NULL: any. Index outbox_replay_open.
select replay, who, to_topic, rate, total, pos, seq_last, seqs
from outbox_replay
where state in ('running', 'paused', 'stopped') and state = 'running' and (?1 is null or replay = ?1)
order by replay
limit 1
