-- The page after the cursor: messages above `high` in order, at most ?2 of them and ?3 bytes, but at least one.
-- ?1 high
-- Both walks go along the primary key. The first reads sizes only (octet_length of a stored value comes from the row's
-- header), so what does not fit the page is not read; the small columns, two kilobytes a message at most, are left out. There are no late messages: SQLite has one writer at a time.
with sized as materialized (
  select seq, bytes, sum(bytes) over (order by seq rows unbounded preceding) as bytes_so_far
  from (
    select
      seq,
      coalesce(octet_length(payload), 0) + coalesce(octet_length(key), 0) + coalesce(octet_length(headers), 0) as bytes
    from outbox_message
    where seq > ?1
    order by seq
    limit ?2
  )
)
select
  m.seq, m.id, m.topic, m.key, m.payload, m.headers, m.partition, m.content_type, m.correlation_id, m.causation_id,
  m.traceparent, m.tracestate, m.created_at, m.deliver_after,
  (julianday('now') - julianday(max(m.created_at, coalesce(m.deliver_after, m.created_at)))) * 86400.0 as age_seconds,
  (select count(*) from sized) as found
from outbox_message as m
where m.seq > ?1
  -- the first one always fits
  and m.seq <= (select max(seq) from sized where bytes_so_far <= ?3 or bytes_so_far = bytes)
order by m.seq
