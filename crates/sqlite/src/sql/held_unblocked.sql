-- Which keys have held messages that all wait for an earlier one? Nothing blocks those any longer. Walks outbox_held_behind
-- key by key; the head of a key is the first of its rows in outbox_held_key_hash_seq, so a blocked key costs one look.
with recursive waiting (key_hash) as (
  select min(key_hash) from outbox_held where state = 'behind'
  union all
  select (select min(h.key_hash) from outbox_held as h where h.state = 'behind' and h.key_hash > waiting.key_hash)
  from waiting
  where waiting.key_hash is not null
)
select key_hash
from waiting
where key_hash is not null
  and not exists (
    select 1 from outbox_held as h where h.key_hash = waiting.key_hash and h.state <> 'behind')
limit 10000
