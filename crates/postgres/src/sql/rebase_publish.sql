-- Gives messages ($1) the number of this transaction ($2): the cursor has not seen it, so they come as late ones. Index: message_pkey.
update outbox.message m set xid = $2::text::xid8 where m.seq = any ($1::bigint[])
