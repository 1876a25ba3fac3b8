-- Where does the sweep stand, how far may it go, and what do receipts prove? No row if the term is over.
-- ?1 epoch, ?2 nonce
-- Receipts are purged in the order of their numbers: those of before the oldest one may be gone, unless it is the very first.
select s.swept_to, c.high, r.settled_at as receipts_since, substr(r.cursor_before, 1, 2) = '0@' as receipts_are_all
from outbox_cursor as c
join outbox_sweep as s
left join outbox_receipt as r on r.receipt = (select min(receipt) from outbox_receipt)
where c.epoch = ?1 and c.nonce = ?2
