-- The newest rewinds, at most ?1.
select at, seq_first, seq_last from outbox_rewind order by rewind desc limit ?1
