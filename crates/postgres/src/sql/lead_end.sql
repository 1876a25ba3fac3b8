-- Ends the term ($1 epoch, $2 nonce) in order: whoever leads next has no reason for caution.
update outbox.cursor c
set terms_unsettled = 0
where c.singleton and c.epoch = $1 and c.nonce = $2
