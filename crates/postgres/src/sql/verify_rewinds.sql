-- The newest rewinds, at most $1. Index: rewind_pkey.
select r.at, r.seq_first, r.seq_last from outbox.rewind r order by r.rewind desc limit $1
