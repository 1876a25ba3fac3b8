-- How many messages are held, and which keys have followers alone, so that nothing blocks them any longer? Walks the whole
-- table: asked at the start of a term and after an operator acted, not after every settle.
select
  (select count(*) from outbox.held h) as messages,
  array(
    select h.key_hash
    from outbox.held h
    where h.key_hash is not null
    group by h.key_hash
    having bool_and(h.state = 'behind')
  ) as unblocked
