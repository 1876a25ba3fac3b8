-- Has this consumer yet to handle this message? (handled_pkey)
select inbox.claim(
  consumer => $1, id => $2, topic => $3, partition => $4, record_offset => $5, correlation_id => $6)
