-- Keeps who did what to a held message, and why.
-- ?1 kind, ?2 id, ?3 seq, ?4 topic, ?5 reason it was held for, ?6 correlation id, ?7 who, ?8 why, ?9 details
insert into outbox_held_action (kind, id, seq, topic, reason_held, correlation_id, who, why, details)
values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)
