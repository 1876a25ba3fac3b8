-- A replay that runs: the one with this number, or the oldest. ?1 number, NULL: any; ?2 epoch. Index outbox_replay_open.
-- in_vain: terms that got nowhere with it, if the last of them ended without a word.
select replay, who, to_topic, rate, total, pos, seq_last, seqs,
  case when taken_epoch <> ?2 and exists (select 1 from outbox_term as e where e.epoch = taken_epoch and e.ended_at is null)
    then takes else 0 end as in_vain
from outbox_replay
where state in ('running', 'paused', 'stopped') and state = 'running' and (?1 is null or replay = ?1)
order by replay
limit 1
