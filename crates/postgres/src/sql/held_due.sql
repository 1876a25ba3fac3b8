-- Which held messages may be published now? Those that are due and have no earlier held message of their key that is parked, not
-- due, or has failed before (that one must be answered first). $1: topics that cannot be written to, $2: keys whose followers
-- may go, $3 messages and $4 bytes: the limits.
-- held_key_hash_seq serves the earlier messages of a key, message_pkey the messages.
with due as materialized (
  select h.seq, h.attempts
  from outbox.held h
  where h.topic <> all ($1::text[])
    and case h.state
      when 'retry' then coalesce(h.due_at <= now(), true)
      when 'topic' then coalesce(h.due_at <= now(), true)
      when 'behind' then h.key_hash = any ($2::bigint[])
      else false
    end
    and not exists (
      select
      from outbox.held e
      where e.key_hash = h.key_hash and e.seq < h.seq
        and (
          e.attempts > 0
          or e.topic = any ($1::text[])
          or not case e.state
            when 'retry' then coalesce(e.due_at <= now(), true)
            when 'topic' then coalesce(e.due_at <= now(), true)
            when 'behind' then e.key_hash = any ($2::bigint[])
            else false
          end
        )
    )
  order by h.seq
  limit $3
), sized as (
  select d.seq, d.attempts, sum(m.bytes) over (order by d.seq rows unbounded preceding) - m.bytes as bytes_before
  from due d
  cross join lateral (
    select coalesce(octet_length(m.payload), 0) + coalesce(octet_length(m.key), 0) + coalesce(pg_column_size(m.headers), 0) as bytes
    from outbox.message m
    where m.seq = d.seq
  ) m
)
select s.attempts, (extract(epoch from clock_timestamp()) * 1000000)::bigint as clock_us, m.seq, m.id, m.topic, m.key, m.payload, m.headers::text as headers, m.partition, m.content_type,
  m.correlation_id, m.causation_id, m.traceparent, m.tracestate, m.created_at
from sized s
join outbox.message m on m.seq = s.seq
where s.bytes_before < $4
order by s.seq
