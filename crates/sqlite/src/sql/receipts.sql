-- Where did the messages from ?1 to ?2 land? Every receipt row that may hold one of these places, of replays too.
-- ?3 span: a row out of order covers less than so many places, but for those of outbox_receipt_wide, which an earlier version wrote
-- Index outbox_receipt_seq, and outbox_receipt_wide for the last.
select receipt, replay, epoch, relay, settled_at, receipts
from (
  select receipt, replay, epoch, relay, settled_at, receipts from outbox_receipt where out_of_order = 0 and seq_first <= ?1
  order by seq_first desc limit 1
)
union all
select receipt, replay, epoch, relay, settled_at, receipts
from outbox_receipt
where out_of_order = 0 and seq_first > ?1 and seq_first <= ?2
union all
select receipt, replay, epoch, relay, settled_at, receipts
from outbox_receipt
where out_of_order = 1 and seq_first > ?1 - ?3 and seq_first <= ?2 and seq_last >= ?1
union all
select receipt, replay, epoch, relay, settled_at, receipts
from outbox_receipt
where out_of_order and seq_last - seq_first >= 4096 and seq_first <= ?1 - ?3 and seq_last >= ?1
