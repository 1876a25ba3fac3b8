-- Keeps what an operator did to the outbox. ?1 kind, ?2 who, ?3 why, ?4 details as JSON
insert into outbox_operation (kind, who, why, details) values (?1, ?2, ?3, ?4)
