-- Which held messages may be published now? Those that are due and have no earlier held message of their key that is parked, not
-- due, or has failed before (that one must be answered first). $1: topics that cannot be written to, $2: keys whose followers
-- may go, $3 messages and $4 bytes: the limits.
--
-- What is looked at, about $5 messages: of each topic that can be written to the first that are due (held_topic_seq; each has its
-- share, so that one whose messages are all blocked keeps no other from going, and many topics cost no more than one), and of each
-- key of $2 the first, whatever their state (held_key_hash_seq). Each is complete up to its last message: nothing that may go
-- before one of its key is left out (a key has one topic, and one of $2 comes from there alone).
--
-- Candidates are due, and the first message of their key does not block them: one probe of held_key_hash_seq each (what is due
-- and blocked for long, held_demote.sql puts behind). Another message between the first one and them may block them too: it
-- is looked for once per key, over candidates alone, because whatever precedes it there is due. So a key with many
-- followers costs no more than a page.
with recursive unblocked as materialized (
  select k.key_hash from unnest($2::bigint[]) as k (key_hash)
), topics (topic) as (
  (select h.topic from outbox.held h where h.state in ('retry', 'topic') order by h.topic limit 1)
  union all
  select (select h.topic from outbox.held h where h.state in ('retry', 'topic') and h.topic > t.topic order by h.topic limit 1)
  from topics t
  where t.topic is not null
), share (messages) as (
  select greatest($5 / greatest(count(t.topic), 1), 1) from topics t where t.topic <> all ($1::text[])
), scanned as materialized (
  select h.seq, h.key_hash, h.attempts
  from (
    select d.seq, d.key_hash, d.attempts
    from topics t
    cross join lateral (
      select w.seq, w.key_hash, w.attempts
      from outbox.held w
      -- As rows, so that only held_topic_seq fits.
      where (w.topic, w.seq) >= (t.topic, -9223372036854775808) and (w.topic, w.seq) <= (t.topic, 9223372036854775807)
        and w.state in ('retry', 'topic')
        and coalesce(w.due_at <= now(), true)
        and (w.key_hash is null or w.key_hash not in (select u.key_hash from unblocked u))
      order by w.topic, w.seq
      limit (select s.messages from share s)
    ) d
    where t.topic <> all ($1::text[])
    union all
    select f.seq, f.key_hash, f.attempts
    from unblocked u
    cross join lateral (
      select w.seq, w.key_hash, w.attempts, w.topic, w.state, w.due_at
      from outbox.held w
      where (w.key_hash, w.seq) >= (u.key_hash, -9223372036854775808) and (w.key_hash, w.seq) <= (u.key_hash, 9223372036854775807)
      order by w.key_hash, w.seq
      -- The fewer keys, the more of each.
      limit (select greatest($5 / greatest(count(*), 1), 1) from unblocked)
    ) f
    where f.topic <> all ($1::text[])
      and case f.state
        when 'retry' then coalesce(f.due_at <= now(), true)
        when 'topic' then coalesce(f.due_at <= now(), true)
        when 'behind' then true
        else false
      end
  ) h
  order by h.seq
  limit $5
), candidate as materialized (
  select h.seq, h.key_hash, h.attempts
  from scanned h
  where h.key_hash is null or (
      select f.seq >= h.seq or (
        f.attempts = 0
        and f.topic <> all ($1::text[])
        and case f.state
          when 'retry' then coalesce(f.due_at <= now(), true)
          when 'topic' then coalesce(f.due_at <= now(), true)
          when 'behind' then f.key_hash in (select u.key_hash from unblocked u)
          else false
        end
      )
      from outbox.held f
      where (f.key_hash, f.seq) >= (h.key_hash, -9223372036854775808)
      order by f.key_hash, f.seq
      limit 1
    )
  order by h.seq
  limit $3
), blocked as materialized (
  select k.key_hash, b.seq
  from (
    select c.key_hash, max(c.seq) as last from candidate c where c.key_hash is not null group by c.key_hash
  ) k
  cross join lateral (
    select e.seq
    from outbox.held e
    where (e.key_hash, e.seq) >= (k.key_hash, -9223372036854775808) and (e.key_hash, e.seq) < (k.key_hash, k.last)
      and not (
        e.attempts = 0
        and e.topic <> all ($1::text[])
        and case e.state
          when 'retry' then coalesce(e.due_at <= now(), true)
          when 'topic' then coalesce(e.due_at <= now(), true)
          when 'behind' then e.key_hash in (select u.key_hash from unblocked u)
          else false
        end
      )
    order by e.key_hash, e.seq
    limit 1
  ) b
), sized as (
  select d.seq, d.key_hash, d.attempts, sum(m.bytes) over (order by d.seq rows unbounded preceding) - m.bytes as bytes_before
  from (
    select c.seq, c.key_hash, c.attempts
    from candidate c
    left join blocked b on b.key_hash = c.key_hash
    where b.seq is null or c.seq <= b.seq
  ) d
  cross join lateral (
    select coalesce(octet_length(coalesce(e.payload, m.payload)), 0) + coalesce(octet_length(m.key), 0)
      + coalesce(octet_length(coalesce(e.headers, m.headers)::text), 0) + coalesce(octet_length(m.tracestate), 0) as bytes
    from outbox.message m
    -- The limit keeps it a probe of held_edit_pkey: planned as a join, it would sort what is held.
    left join lateral (select i.payload, i.headers from outbox.held_edit i where i.seq = d.seq limit 1) e on true
    where m.seq = d.seq
  ) m
)
select s.attempts, (extract(epoch from clock_timestamp()) * 1000000)::bigint as clock_us, m.seq, m.id,
  -- As an operator has edited it.
  case when 'topic' = any (e.edited) then e.topic else m.topic end as topic,
  m.key,
  case when 'payload' = any (e.edited) then e.payload else m.payload end as payload,
  case when 'headers' = any (e.edited) then e.headers else m.headers end::text as headers,
  case when 'partition' = any (e.edited) then e.partition else m.partition end as partition,
  m.content_type, m.correlation_id, m.causation_id, m.traceparent, m.tracestate,
  m.created_at, m.deliver_after, s.key_hash
from sized s
cross join lateral (select i.* from outbox.message i where i.seq = s.seq) m
left join lateral (select i.* from outbox.held_edit i where i.seq = s.seq limit 1) e on true
where s.bytes_before < $4
order by s.seq
