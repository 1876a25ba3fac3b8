-- The cursor and its leader (alive: same condition as leader.sql).
select
  epoch, relay, led_at, high, settled_at, kafka_cluster, sqlite_version() as sqlite_version,
  (strftime('%Y-%m-%dT%H:%M:%fZ', 'now') >= kept_at and strftime('%Y-%m-%dT%H:%M:%fZ', 'now') < lease_until) is true as alive
from outbox_cursor
