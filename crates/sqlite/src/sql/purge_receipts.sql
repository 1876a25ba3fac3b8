-- Deletes a step of old receipts; they are numbered in the order in which they were settled.
-- ?1 age in seconds, ?2 rows
delete from outbox_receipt
where receipt in (
  select receipt
  from (select receipt, settled_at from outbox_receipt order by receipt limit ?2)
  where settled_at < strftime('%Y-%m-%dT%H:%M:%fZ', 'now', printf('-%.3f seconds', ?1))
)
