-- What does the cursor speak of, and how many messages are there?
select
  c.high, c.relay, c.kafka_cluster,
  (select count(*) from outbox_message where seq > c.high) as above_cursor,
  (select count(*) from outbox_message where seq <= c.high) as at_or_below,
  (select count(*) from outbox_held) as held,
  (select count(*) from outbox_scheduled) as scheduled
from outbox_cursor as c
