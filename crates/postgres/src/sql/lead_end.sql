-- Ends the term ($1 epoch, $2 nonce) in order: whoever leads next has no reason for caution.
with ended as (
  update outbox.cursor c
  set terms_unsettled = 0
  where c.singleton and c.epoch = $1 and c.nonce = $2
  returning c.epoch
)
update outbox.term t set ended_at = clock_timestamp() from ended e where t.epoch = e.epoch
