-- Puts messages that are due, but blocked by the first held message of their key, behind it: among $2 that are due, of
-- topics other than $1, each with its share. They are due again when nothing blocks their key, which may be at once: hence the keys. Without this a
-- message that was parked when its topic came back would leave thousands that are for ever due and never to be released, and a
-- follower whose own follower waits for the topic would never count as unblocked.
-- held_topic_seq serves the walk of each topic, held_key_hash_seq the probe.
with recursive topics (topic) as (
  (select h.topic from outbox.held h where h.state in ('retry', 'topic') order by h.topic limit 1)
  union all
  select (select h.topic from outbox.held h where h.state in ('retry', 'topic') and h.topic > t.topic order by h.topic limit 1)
  from topics t
  where t.topic is not null
), share (messages) as (
  select greatest($2 / greatest(count(t.topic), 1), 1) from topics t where t.topic <> all ($1::text[])
), scanned as materialized (
  select d.seq, d.key_hash
  from topics t
  cross join lateral (
    select w.seq, w.key_hash
    from outbox.held w
    -- As rows, so that only held_topic_seq fits.
    where (w.topic, w.seq) >= (t.topic, -9223372036854775808) and (w.topic, w.seq) <= (t.topic, 9223372036854775807)
      and w.state in ('retry', 'topic')
      and coalesce(w.due_at <= now(), true)
    order by w.topic, w.seq
    limit (select s.messages from share s)
  ) d
  where t.topic <> all ($1::text[])
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
