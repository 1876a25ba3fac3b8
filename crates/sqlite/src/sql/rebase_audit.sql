-- Keeps who rebased and why. ?1 who, ?2 why, ?3 details
insert into outbox_operation (kind, who, why, details) values ('rebase', ?1, ?2, ?3) returning operation
