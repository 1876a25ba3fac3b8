-- Where does dispatching start? No row if the term is over.
-- ?1 epoch, ?2 nonce
select
  high, kafka_cluster, (select coalesce(max(action), 0) from outbox_held_action where kind <> 'cancel') as actions,
  -- This term is one of them until it has settled something.
  max(terms_unsettled - 1, 0) as terms_unsettled, trial_seq, trials,
  exists (select 1 from outbox_held where seq = trial_seq) as trial_is_held
from outbox_cursor
where epoch = ?1 and nonce = ?2
