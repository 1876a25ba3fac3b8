-- Sets a session's settings in one round trip. A setting that this server version does not know
-- (idle_session_timeout and client_connection_check_interval came with 14) is left out: its current value is NULL.
select set_config(s.name, s.value, false)
from unnest($1::text[], $2::text[]) as s(name, value)
where current_setting(s.name, true) is not null
