-- Marks every message whose number this cluster has not given out before the snapshot ($1), except those of this transaction ($2): 2 is
-- the number that every snapshot has seen. Messages above the cursor are read by their seq, whatever their number. Index: message_xid_seq.
update outbox.message m
set xid = '2'
where m.xid >= pg_catalog.pg_snapshot_xmin($1::text::pg_snapshot) and m.xid <> $2::text::xid8
