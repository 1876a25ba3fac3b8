-- Takes a scheduled intent back; a trigger refuses it once its time has come. Of an id that
-- is used again, whatever was written before the last cancellation is cancelled.
insert into outbox_cancelled (id, why) values (?1, ?2)
on conflict (id) do update set cancelled_at = excluded.cancelled_at, why = excluded.why
