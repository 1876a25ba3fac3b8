-- The held messages above $1, at most $2 of them: the hash of each key, and the hashes of those that block their key. One row;
-- `last` is NULL behind the end.
-- held_pkey serves it: messages lie in the table in about this order, while hashes would lead to a block of the table each.
select
  count(*) as messages,
  max(h.seq) as last,
  coalesce(array_agg(h.key_hash) filter (where h.key_hash is not null), '{}') as keys,
  coalesce(array_agg(h.key_hash) filter (where h.key_hash is not null and h.state <> 'behind'), '{}') as blocked
from (
  select i.seq, i.key_hash, i.state from outbox.held i where i.seq > $1 order by i.seq limit $2
) h
