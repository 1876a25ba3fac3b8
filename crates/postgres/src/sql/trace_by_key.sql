-- Which intents have the Kafka key $1, in topic $3 (NULL: in any)? The last $2, ascending: what is asked of a key is what happened lately.
-- Index message_key, which is optional: without it the table is walked. Its expression is the hash, because a key may be larger than
-- an index takes. Needs the right to read keys, which the reader does not have.
select to_jsonb(e) as intent
from (
  select m.seq
  from outbox.message m
  where hashtextextended(m.key, 0) = hashtextextended($1, 0) and m.key = $1 and ($3::text is null or m.topic = $3)
  order by m.seq desc
  limit $2
) found
join outbox.envelope e on e.seq = found.seq
order by e.seq
