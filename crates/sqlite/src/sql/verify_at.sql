-- What was published of the messages at these places (?1, a JSON array)?
select m.seq, m.id, m.topic, m.created_at, m.key, m.payload, e.seq is not null as is_edited, e.payload as edited
from json_each(?1) as wanted
join outbox_message as m on m.seq = wanted.value
left join outbox_held_edit as e on e.seq = m.seq and e.edited like '%"payload"%'
order by m.seq
