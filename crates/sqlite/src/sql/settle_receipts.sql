-- Stores where a run of messages landed.
-- ?1 epoch, ?2 out of order, ?3 cursor before, ?4 cursor after, ?5 first seq, ?6 last seq, ?7 messages, ?8 packed receipts
insert into outbox_receipt
  (epoch, relay, out_of_order, cursor_before, cursor_after, seq_first, seq_last, messages, receipts)
select ?1, relay, ?2, ?3, ?4, ?5, ?6, ?7, ?8 from outbox_cursor
