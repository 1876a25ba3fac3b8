-- What waits for its time? Filters: $1 id, $2 topic (as LIKE has it); NULL means any. $3: at most so many; NULL means all.
-- scheduled_due gives the order; the envelope is read by seq, so that no right to key or payload is needed.
select s.seq, s.id, e.correlation_id, s.topic, s.key_hash, e.created_at, s.due_at, c.who as cancelled_by
from outbox.scheduled s
join outbox.envelope e on e.seq = s.seq
left join outbox.cancelled c on c.id = s.id and c.cancelled_at >= e.created_at
where ($1::uuid is null or s.id = $1) and ($2::text is null or s.topic like $2)
order by s.due_at, s.seq
limit $3
