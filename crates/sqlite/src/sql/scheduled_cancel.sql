-- Takes back the scheduled intent of an id, if there is one and its time has not come; none is inserted otherwise.
-- ?1 id as text, ?2 id as a blob, ?3 who, ?4 why
insert into outbox_cancelled (id, who, why)
select m.id, ?3, ?4
from outbox_message as m
where m.id in (?1, ?2) and m.deliver_after is not null and m.deliver_after > strftime('%Y-%m-%dT%H:%M:%fZ', 'now')
limit 1
on conflict (id) do update set cancelled_at = excluded.cancelled_at, who = excluded.who, why = excluded.why
