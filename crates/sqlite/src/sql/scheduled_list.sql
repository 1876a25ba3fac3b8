-- What waits for its time, earliest first? ?1 id, ?2 topic (as GLOB has it; NULL: any), ?3 at most so many (-1: all)
select s.seq, s.id, s.topic, s.key_hash, s.due_at, m.correlation_id, m.created_at, c.who as cancelled_by
from outbox_scheduled as s
cross join outbox_message as m on m.seq = s.seq
left join outbox_cancelled as c on c.id = m.id and c.cancelled_at >= m.created_at
where (?1 is null or s.id = ?1) and (?2 is null or s.topic glob ?2)
order by s.due_at, s.seq
limit ?3
