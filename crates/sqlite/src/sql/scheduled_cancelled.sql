-- Notes that a scheduled message was cancelled and is not delivered.
-- ?1 id, ?2 seq, ?3 topic, ?4 correlation id, ?5 who, ?6 why
insert into outbox_held_action (kind, id, seq, topic, reason_held, correlation_id, who, why)
values ('cancel', ?1, ?2, ?3, 'scheduled', ?4, ?5, ?6)
