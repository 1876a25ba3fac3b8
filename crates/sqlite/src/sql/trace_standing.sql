-- The outbox at the moment of a question (alive: same condition as leader.sql): who leads, when it settled last, from when on receipts are
-- there, and which of the optional indexes of trace can be used. One object; each part is a probe.
select json_object(
  'now', strftime('%Y-%m-%dT%H:%M:%fZ', 'now'),
  'epoch', c.epoch,
  'relay', c.relay,
  'led_at', c.led_at,
  'settled_at', c.settled_at,
  'alive', json(iif(
    strftime('%Y-%m-%dT%H:%M:%fZ', 'now') >= c.kept_at and strftime('%Y-%m-%dT%H:%M:%fZ', 'now') < c.lease_until, 'true', 'false')),
  'ended_at', (select t.ended_at from outbox_term as t where t.epoch = c.epoch),
  -- Receipts are purged by age, the oldest first. The very first one began at nothing: then none is missing.
  'receipts_since', (
    select iif(r.cursor_before like '0@%', '1970-01-01T00:00:00.000Z', r.settled_at) from outbox_receipt as r order by r.receipt limit 1),
  'outage_at', (select r.at from outbox_rewind as r where r.reason = 'outage' order by r.rewind desc limit 1),
  'indexes', (
    select json_group_array(substr(i.name, 16)) from pragma_index_list('outbox_message') as i where i.name glob 'outbox_message_*'),
  'table_bytes', (select page_count from pragma_page_count()) * (select page_size from pragma_page_size())) as standing
from outbox_cursor as c
