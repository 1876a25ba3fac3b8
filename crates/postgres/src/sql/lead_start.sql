-- Where does dispatching start, and which operator action was the last one? No row if the term ($1 epoch, $2 nonce) is over. One
-- row of the cursor, and the newest actions (held_action_operator).
-- What is held is read after this, page by page (held_counts.sql): an action that comes in between is then a later one.
select c.high, c.seen::text as seen, c.pos, c.until::text as until, c.xid_bound::text as xid_bound, c.kafka_cluster, a.actions,
  -- This term is one of them until it has settled something.
  greatest(c.terms_unsettled - 1, 0) as terms_unsettled, c.trial_seq, c.trials,
  exists (select from outbox.held h where h.seq = c.trial_seq) as trial_is_held
from outbox.cursor c
cross join outbox.operator_actions a
where c.singleton and c.epoch = $1 and c.nonce = $2
