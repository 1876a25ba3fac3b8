-- How far is the build of an index, and whose transaction does it wait for? No row: it has not begun, or has ended.
-- $1 the backend that builds
select p.phase,
  (case
     when p.lockers_total > 0 and p.current_locker_pid > 0 then null
     when p.blocks_total > 0 then 100 * p.blocks_done / p.blocks_total
     when p.tuples_total > 0 then 100 * p.tuples_done / p.tuples_total
   end)::integer as percent,
  case when p.current_locker_pid > 0 then
    'backend ' || p.current_locker_pid || coalesce(' of ' || a.usename, '') || coalesce(' (' || nullif(a.application_name, '') || ')', '')
  end as waits_for
from pg_catalog.pg_stat_progress_create_index p
left join pg_catalog.pg_stat_activity a on a.pid = p.current_locker_pid
where p.pid = $1
