-- The page after a cursor: which messages come next, and which snapshot has seen them? One statement, so that rows and
-- snapshot belong together: run it in READ COMMITTED, outside any function, never in two parts.
--
--   $1 seen    snapshot of the cursor         $2 high   highest seq dealt with
--   $3 pos     catch-up: dealt with so far    $4 until  catch-up: its snapshot; NULL without one, and then pos is below all
--   $5 bound   no message at or below high has an xid at or above this one
--   $6 messages and $7 bytes: the limits
--
-- Bytes are those that the relay gets: headers as text, because pg_column_size() is what is left of them after compression. The
-- small columns are bounded by their CHECKs, some kilobytes a message altogether, and left out.
--
-- Index message_xid_seq serves the late arm, message_pkey the rest. Plans must not depend on statistics (the table may have been
-- empty when they were made), hence comparisons that only one index can serve: (xid, seq) as rows for the late arm.
with recursive
  -- Transactions that began after `seen` was taken, or that ran then with an xid above its xmax (xmax is "latest completed
  -- + 1"): each distinct xid by one probe, so that a transaction of a million messages costs as much as one of a single one.
  younger (xid) as (
    (select m.xid
     from outbox.message m
     where m.xid >= pg_snapshot_xmax($1::text::pg_snapshot) and m.xid < $5::text::xid8
     order by m.xid
     limit 1)
    union all
    select (select m.xid from outbox.message m where m.xid > y.xid and m.xid < $5::text::xid8 order by m.xid limit 1)
    from younger y
    where y.xid is not null
  ),
  -- Every transaction whose messages `seen` could not see and that has ended since; in a catch-up, before `until`, so that it ends.
  -- One that goes on has nothing to show, but looking for it would walk all that it has inserted so far, page after page.
  unseen (xid) as (
    select x.xid
    from (
      select p.xid from pg_snapshot_xip($1::text::pg_snapshot) p (xid)
      union all
      select y.xid from younger y where y.xid is not null
    ) x
    where pg_visible_in_snapshot(x.xid, coalesce($4::text::pg_snapshot, pg_current_snapshot()))
  ),
  -- Late messages: at or below high, of those transactions. One more than the limit, to know whether these are all.
  late as materialized (
    select l.*,
      row_number() over in_order as nth,
      sum(l.bytes) over in_order - l.bytes as bytes_before
    from (
      select m.*
      from unseen u
      cross join lateral (
        select m.seq, m.id, m.topic, m.key, m.payload, m.headers, m.partition, m.content_type, m.correlation_id,
          m.causation_id, m.traceparent, m.tracestate, m.created_at, m.deliver_after,
          coalesce(octet_length(m.payload), 0) + coalesce(octet_length(m.key), 0) + coalesce(octet_length(m.headers::text), 0) + coalesce(octet_length(m.tracestate), 0) as bytes
        from outbox.message m
        where (m.xid, m.seq) > (u.xid, $3) and (m.xid, m.seq) <= (u.xid, $2)
        order by m.xid, m.seq
        limit $6 + 1
      ) m
      order by m.seq
      limit $6 + 1
    ) l
    window in_order as (order by l.seq rows unbounded preceding)
  ),
  late_sum as materialized (
    select
      count(*) filter (where l.nth <= $6 and l.bytes_before < $7) as taken,
      coalesce(bool_and(l.nth <= $6 and l.bytes_before < $7), true) as complete,
      coalesce(sum(l.bytes), 0) as bytes
    from late l
  ),
  -- The rest follows only when every late message is in the page, and never in a catch-up: the snapshot may not move without
  -- the whole late arm. Its size is summed up before it is read (no payload is detoasted for that).
  ahead as materialized (
    select sum(r.bytes) as bytes, bool_or(r.xid >= pg_snapshot_xmax(pg_current_snapshot())) as is_foreign
    from (
      select m.xid,
        coalesce(octet_length(m.payload), 0) + coalesce(octet_length(m.key), 0) + coalesce(octet_length(m.headers::text), 0) + coalesce(octet_length(m.tracestate), 0) as bytes
      from outbox.message m
      where m.seq > $2 and $4::text is null and (select s.complete and s.bytes < $7 from late_sum s)
      order by m.seq
      limit $6
    ) r
  )
-- First what belongs to the page as a whole, then its messages.
select
  array[
    pg_current_snapshot()::text,
    -- The next xid to be given out, later than the snapshot: the bound for the cursor after this page. age() counts from it.
    (pg_snapshot_xmax(pg_current_snapshot())::text::numeric + age(pg_snapshot_xmax(pg_current_snapshot())::xid))::text,
    -- Everything that the snapshot sees was logged before this position.
    (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::text,
    (extract(epoch from pg_postmaster_start_time()) * 1000000)::bigint::text,
    (extract(epoch from clock_timestamp()) * 1000000)::bigint::text,
    s.taken::text,
    s.complete::text,
    coalesce(a.bytes > $7 - s.bytes, false)::text,
    -- A visible message cannot be younger than the snapshot, unless it was written in another cluster.
    (coalesce(a.is_foreign, false)
      or exists (select from younger y where y.xid >= pg_snapshot_xmax(pg_current_snapshot())))::text
  ] as page,
  null::bigint as seq, null::uuid as id, null::text as topic, null::text as key, null::bytea as payload, null::text as headers,
  null::integer as partition, null::text as content_type, null::text as correlation_id, null::text as causation_id,
  null::text as traceparent, null::text as tracestate, null::timestamptz as created_at,
  null::timestamptz as deliver_after
from late_sum s cross join ahead a
union all
select null, l.seq, l.id, l.topic, l.key, l.payload, l.headers::text, l.partition, l.content_type, l.correlation_id,
  l.causation_id, l.traceparent, l.tracestate, l.created_at, l.deliver_after
from late l
where l.nth <= $6 and l.bytes_before < $7
union all
select null, r.seq, r.id, r.topic, r.key, r.payload, r.headers::text, r.partition, r.content_type, r.correlation_id,
  r.causation_id, r.traceparent, r.tracestate, r.created_at, r.deliver_after
from (
  select m.*
  from outbox.message m
  where m.seq > $2 and (select a.bytes is not null from ahead a)
    -- Cut by bytes, but not before the first message.
    and m.seq <= (select case
      when a.bytes <= $7 - s.bytes then 9223372036854775807
      else (
        select max(c.seq)
        from (
          select b.seq, s.bytes + sum(b.bytes) over (order by b.seq rows unbounded preceding) - b.bytes as bytes_before
          from (
            select m.seq, coalesce(octet_length(m.payload), 0) + coalesce(octet_length(m.key), 0)
              + coalesce(octet_length(m.headers::text), 0) + coalesce(octet_length(m.tracestate), 0) as bytes
            from outbox.message m
            where m.seq > $2
            order by m.seq
            limit $6
          ) b
        ) c
        where c.bytes_before < $7
      )
      end
      from late_sum s cross join ahead a)
  order by m.seq
  limit (select greatest($6 - s.taken, 0) from late_sum s)
) r
