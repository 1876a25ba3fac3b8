-- Deletes receipts older than $2 microseconds, at most $1. Index: receipt_settled_at.
delete from outbox.receipt r
where r.receipt = any (array(
  select o.receipt
  from outbox.receipt o
  where o.settled_at < now() - make_interval(secs => $2 / 1000000.0)
  order by o.settled_at
  limit $1
))
