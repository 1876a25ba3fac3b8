-- Which topics do intents name? The newest 10,000 of them, and held ones (whose own rows name the topic that their route made of it).
select topic from (select topic from outbox_message order by seq desc limit 10000)
union
select i.topic from outbox_held as h cross join outbox_message as i on i.seq = h.seq
order by 1
