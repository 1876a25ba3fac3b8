-- Does a relay hold the lead now? Asked a few times a second by standbys, so it takes no lock.
-- A lease is alive between the moment it was kept last and its end: when the clock is set back, it is over rather than endless.
select strftime('%Y-%m-%dT%H:%M:%fZ', 'now') >= kept_at and strftime('%Y-%m-%dT%H:%M:%fZ', 'now') < lease_until as alive
from outbox_cursor
