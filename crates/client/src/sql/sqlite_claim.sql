-- Claims a message for this consumer; no row is written if it has handled it. (the primary key)
insert into inbox_handled (consumer, id, topic, partition, record_offset, correlation_id)
values (?1, ?2, ?3, ?4, ?5, ?6)
on conflict (consumer, id) do nothing
