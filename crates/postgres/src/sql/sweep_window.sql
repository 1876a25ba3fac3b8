-- What is to be compared next, and what is known of it? All of one snapshot, so that a message is never between two states.
--
--   $1 from    messages above this seq; NULL: above where the sweep stands
--   $2 rows    at most so many messages
--   $3 epoch, $4 nonce   the term; NULL: nobody leads. No row: the term is over.
--   $5 span    a receipt row out of order covers less than so many places, but for those of receipt_wide
--
-- Of messages only the seq is read: message_pkey alone serves it, no row is looked at. Receipts: rows in order do not overlap,
-- so they are the one that begins at or before the first message and those that begin after it; rows out of order begin less
-- than a span before it. Each is read with a limit, and whoever reads the answer stops before the last row of one that is full.
with place as materialized (
  select coalesce($1, s.swept_to) as swept_to, c.high, c.seen::text as seen, c.pos, c.until::text as until
  from outbox.cursor c cross join outbox.sweep s
  where c.singleton and s.singleton and ($3::bigint is null or (c.epoch = $3 and c.nonce = $4))
), messages as materialized (
  select m.seq
  from outbox.message m
  where m.seq > (select p.swept_to from place p) and m.seq <= (select p.high from place p)
  order by m.seq
  limit $2
), ends as materialized (
  select min(m.seq) as first, max(m.seq) as last from messages m
), in_order as materialized (
  (select r.seq_first, r.receipts
   from outbox.receipt r
   where not r.out_of_order and r.seq_first <= (select e.first from ends e)
   order by r.out_of_order desc, r.seq_first desc
   limit 1)
  union all
  (select r.seq_first, r.receipts
   from outbox.receipt r
   where not r.out_of_order and r.seq_first > (select e.first from ends e) and r.seq_first <= (select e.last from ends e)
   order by r.out_of_order, r.seq_first
   limit $2)
), out_of_order as materialized (
  select r.seq_first, r.receipts
  from outbox.receipt r
  where r.out_of_order and r.seq_first > (select e.first - $5 from ends e) and r.seq_first <= (select e.last from ends e)
    -- Any number of replays may have published a message again; the receipt of the message itself is what counts.
    and r.replay is null
  order by r.out_of_order, r.seq_first
  limit $2 + $5
), wide as materialized (
  -- The predicate of receipt_wide: rows that an earlier version wrote.
  select r.receipts
  from outbox.receipt r
  where r.out_of_order and r.seq_last - r.seq_first >= 4096 and r.replay is null
    and r.seq_first <= (select e.last from ends e) and r.seq_last >= (select e.first from ends e)
)
select
  p.high, p.seen, p.pos, p.until,
  array(select m.seq from messages m order by m.seq) as seqs,
  array(select r.seq_first from in_order r order by r.seq_first) as in_order_first,
  array(select r.receipts from in_order r order by r.seq_first) as in_order,
  array(select r.seq_first from out_of_order r order by r.seq_first) as out_of_order_first,
  array(select r.receipts from out_of_order r order by r.seq_first) as out_of_order,
  array(select r.receipts from wide r) as wide,
  array(select h.seq from outbox.held h where h.seq >= e.first and h.seq <= e.last)
    || array(select s.seq from outbox.scheduled s where s.seq >= e.first and s.seq <= e.last) as set_aside,
  -- Receipts are purged by age. Those of before the oldest one may be gone, unless it is the very first: it began at nothing.
  (select o.settled_at from outbox.receipt o order by o.settled_at limit 1) as receipts_since,
  (select starts_with(o.cursor_before, '0@') from outbox.receipt o order by o.receipt limit 1) as receipts_are_all
from place p cross join ends e
