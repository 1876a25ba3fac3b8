-- Which of these keys ($1) have followers left alone, so that nothing blocks them any longer? And which of those can go, because
-- their topic is none of $2 (a key's hash includes its topic)?
-- held_key_hash_seq serves all of it; a key that is blocked is so by its first message, as a rule.
select k.key_hash, h.topic <> all ($2::text[]) as can_go
from unnest($1::bigint[]) as k (key_hash)
cross join lateral (
  select h.key_hash, h.topic
  from outbox.held h
  where (h.key_hash, h.seq) >= (k.key_hash, -9223372036854775808)
  order by h.key_hash, h.seq
  limit 1
) h
where h.key_hash = k.key_hash
  and not exists (select from outbox.held b where b.key_hash = k.key_hash and b.state <> 'behind')
