-- How many messages are held, and which keys have only followers left, so that nothing blocks them any longer?
select
  (select count(*) from outbox.held h) as messages,
  array(
    select h.key_hash
    from outbox.held h
    where h.key_hash is not null
    group by h.key_hash
    having bool_and(h.state = 'behind')
    order by min(h.seq)
    limit 10000
  ) as unblocked
