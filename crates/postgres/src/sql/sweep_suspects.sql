-- Which of these messages ($1), of which nothing is known, had the cursor passed? $2 seen, $3 pos, $4 until: the cursor of the same
-- snapshot as what is known of them, because a later one has passed more. $5: receipts of before this time may be gone, so an
-- older message proves nothing; NULL: none are. A message that an operator discarded or cancelled is accounted for, and
-- that is never forgotten. Indexes: message_pkey, held_action_seq.
select m.seq, m.topic, m.key
from outbox.message m
where m.seq = any ($1::bigint[])
  and (pg_visible_in_snapshot(m.xid, $2::text::pg_snapshot)
    -- What a catch-up has dealt with.
    or ($4::text is not null and m.seq <= $3 and pg_visible_in_snapshot(m.xid, $4::text::pg_snapshot)))
  and coalesce(m.created_at > $5, true)
  and not exists (select from outbox.held_action a where a.seq = m.seq and a.kind in ('discard', 'cancel'))
order by m.seq
