-- Where did the messages of some spans land, from each of $1 to the one at the same place of $2? Every receipt row that may hold one
-- of these places, of replays too, once.
--   $3 span    a receipt row out of order covers less than so many places, but for those of receipt_wide
--
-- Rows in order do not overlap, so they are the one that begins at or before the first place and those that begin inside; rows out
-- of order begin less than a span before it. Index: receipt_seq, and receipt_wide for rows that an earlier version wrote.
select distinct on (f.receipt) f.receipt, f.replay, f.epoch, f.relay, f.settled_at, f.receipts
from unnest($1::bigint[], $2::bigint[]) as s(first, last)
cross join lateral (
  (select r.receipt, r.replay, r.epoch, r.relay, r.settled_at, r.receipts
   from outbox.receipt r
   where not r.out_of_order and r.seq_first <= s.first
   order by r.out_of_order desc, r.seq_first desc
   limit 1)
  union all
  select r.receipt, r.replay, r.epoch, r.relay, r.settled_at, r.receipts
  from outbox.receipt r
  where not r.out_of_order and r.seq_first > s.first and r.seq_first <= s.last
  union all
  select r.receipt, r.replay, r.epoch, r.relay, r.settled_at, r.receipts
  from outbox.receipt r
  where r.out_of_order and r.seq_first > s.first - $3 and r.seq_first <= s.last and r.seq_last >= s.first
  union all
  select r.receipt, r.replay, r.epoch, r.relay, r.settled_at, r.receipts
  from outbox.receipt r
  where r.out_of_order and r.seq_last - r.seq_first >= 4096
    and r.seq_first <= s.first - $3 and r.seq_last >= s.first
) f
order by f.receipt
