-- Which messages above $1 and up to $2 have not been dealt with, although they lie at or below the cursor? $3: those of which nothing
-- is known (no receipt, not set aside); $4 seen, $5 pos, $6 until: the cursor; $7: the last settle; $8: nothing is proved by a missing
-- receipt of messages inserted until then, NULL: by none is nothing proved; $9: there are receipts at all.
--
-- Late: what the cursor says itself. It speaks of the transaction numbers that are in the rows, wherever these are now. Unaccounted: it
-- counts them as dealt with, and they are not: written after the last settle, so with a sequence that had been set back (the receipt
-- of such a seq is of a message that was there before), or passed without a receipt. Index: message_pkey.
select m.seq, not coalesce(c.dealt_with, false) as is_late
from outbox.message m
left join unnest($3::bigint[]) as u (seq) on u.seq = m.seq
cross join lateral (
  select
    pg_visible_in_snapshot(m.xid, $4::text::pg_snapshot)
      or (m.seq <= $5 and pg_visible_in_snapshot(m.xid, $6::text::pg_snapshot)) as dealt_with,
    coalesce(m.created_at > $7, false) as is_new
) c
where m.seq > $1 and m.seq <= $2
  and (c.is_new
    or u.seq is not null and (
      not coalesce(c.dealt_with, false)
      or $9 and coalesce(m.created_at > $8, true)))
  and not exists (select from outbox.held h where h.seq = m.seq)
  and not exists (select from outbox.scheduled s where s.seq = m.seq)
  and not exists (select from outbox.held_action a where a.seq = m.seq and a.kind in ('discard', 'cancel'))
order by m.seq
