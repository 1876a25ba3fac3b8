-- Does the lead still stand? Asked on the lead session, whose idle time it resets. $1: first key of the lock, $2 epoch, $3 nonce.
select
  pg_backend_pid() as backend,
  exists (
    select from pg_locks l
    where l.locktype = 'advisory' and l.granted and l.pid = pg_backend_pid()
      and l.classid = $1::bigint::oid and l.objid = 'outbox.message'::regclass::oid and l.objsubid = 2
  ) as has_lock,
  exists (select from outbox.cursor c where c.singleton and c.epoch = $2 and c.nonce = $3) as has_term
