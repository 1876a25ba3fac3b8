-- How many messages are held, by state and reason?
select state, reason, count(*) as messages from outbox_held group by state, reason order by state, reason
