-- Receipts that may speak of messages from ?1 to ?2. Kind 0: in order; 1: out of order; 2: out of order and wide, as an earlier version
-- wrote them. Index outbox_receipt_seq, and outbox_receipt_wide for the last.
-- ?3 rows, ?4 span: a run out of order covers less than so many places, ?5 most runs out of order
select 0 as kind, seq_first, receipts
from (select seq_first, receipts from outbox_receipt where out_of_order = 0 and seq_first <= ?1 order by seq_first desc limit 1)
union all
select 0, seq_first, receipts
from (
  select seq_first, receipts from outbox_receipt where out_of_order = 0 and seq_first > ?1 and seq_first <= ?2
  order by seq_first limit ?3
)
union all
select 1, seq_first, receipts
from (
  select seq_first, receipts from outbox_receipt where out_of_order = 1 and seq_first > ?1 - ?4 and seq_first <= ?2
    -- Any number of replays may have published a message again; the receipt of the message itself is what counts.
    and replay is null
  order by seq_first limit ?5
)
union all
select 2, seq_first, receipts
from outbox_receipt
where out_of_order and seq_last - seq_first >= 4096 and replay is null and seq_first <= ?2 and seq_last >= ?1
