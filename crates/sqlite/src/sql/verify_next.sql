-- What was published of the next ?3 messages above ?1 and up to ?2?
select m.seq, m.id, m.topic, m.created_at, m.key, m.payload, e.seq is not null as is_edited, e.payload as edited
from outbox_message as m
left join outbox_held_edit as e on e.seq = m.seq and e.edited like '%"payload"%'
where m.seq > ?1 and m.seq <= ?2
order by m.seq
limit ?3
