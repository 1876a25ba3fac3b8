-- Takes a scheduled intent back; a trigger refuses it once its time has come. A second time changes nothing.
insert into outbox_cancelled (id, why) values (?1, ?2) on conflict (id) do nothing
