-- A scheduled message's time has come: it waits no longer. ?1 seq
delete from outbox_scheduled where seq = ?1
