-- Which topics are in use? Those of the newest 10,000 intents and of held messages.
select topic from (select topic from outbox_message order by seq desc limit 10000)
union
select topic from outbox_held
order by 1
