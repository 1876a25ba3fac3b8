-- Where did the messages from $1 to $2 land? Every receipt row that may hold one of these places, of replays too.
--   $3 span    a receipt row out of order covers less than so many places, but for those of receipt_wide
--
-- Rows in order do not overlap, so they are the one that begins at or before the first place and those that begin inside; rows out
-- of order begin less than a span before it. Index: receipt_seq, and receipt_wide for rows that an earlier version wrote.
(select r.receipt, r.replay, r.epoch, r.relay, r.settled_at, r.receipts
 from outbox.receipt r
 where not r.out_of_order and r.seq_first <= $1
 order by r.out_of_order desc, r.seq_first desc
 limit 1)
union all
select r.receipt, r.replay, r.epoch, r.relay, r.settled_at, r.receipts
from outbox.receipt r
where not r.out_of_order and r.seq_first > $1 and r.seq_first <= $2
union all
select r.receipt, r.replay, r.epoch, r.relay, r.settled_at, r.receipts
from outbox.receipt r
where r.out_of_order and r.seq_first > $1 - $3 and r.seq_first <= $2 and r.seq_last >= $1
union all
select r.receipt, r.replay, r.epoch, r.relay, r.settled_at, r.receipts
from outbox.receipt r
where r.out_of_order and r.seq_last - r.seq_first >= 4096
  and r.seq_first <= $1 - $3 and r.seq_last >= $1
