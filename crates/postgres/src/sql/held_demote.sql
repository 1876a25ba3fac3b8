-- Puts messages that are due, but blocked by the first held message of their key, behind it: among the first $2 that are due, of
-- topics other than $1. They are due again when nothing blocks their key, which may be at once: hence the keys. Without this a
-- message that was parked when its topic came back would leave thousands that are for ever due and never to be released, and a
-- follower whose own follower waits for the topic would never count as unblocked.
-- held_pkey serves the walk, held_key_hash_seq the probe.
with scanned as materialized (
  select h.seq, h.key_hash
  from outbox.held h
  where h.topic <> all ($1::text[])
    and h.state in ('retry', 'topic')
    and coalesce(h.due_at <= now(), true)
  order by h.seq
  limit $2
), demoted as (
  update outbox.held h
  set state = 'behind', reason = 'behind', due_at = null
  where h.seq = any (array(
      select s.seq
      from scanned s
      where (
        select f.seq < s.seq and (
          f.attempts > 0
          or f.topic = any ($1::text[])
          or f.state in ('behind', 'parked')
          or coalesce(f.due_at > now(), false)
        )
        from outbox.held f
        where (f.key_hash, f.seq) >= (s.key_hash, -9223372036854775808)
        order by f.key_hash, f.seq
        limit 1
      )
    ))
    -- Nobody has touched it since.
    and h.state in ('retry', 'topic')
  returning h.key_hash
)
select distinct d.key_hash from demoted d
