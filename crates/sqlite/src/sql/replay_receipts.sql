-- Stores where a run of copies landed.
-- ?1 first seq, ?2 last seq, ?3 messages, ?4 packed receipts, ?5 replay
insert into outbox_receipt
  (epoch, relay, out_of_order, cursor_before, cursor_after, seq_first, seq_last, messages, receipts, replay)
select epoch, relay, 1, high || '@', high || '@', ?1, ?2, ?3, ?4, ?5 from outbox_cursor
