-- Is the sequence of intents sound? `drawn` is the highest seq that the next insert stays above.
select
  (select sql from sqlite_schema where type = 'table' and name = 'outbox_message') as definition,
  max(
    coalesce((select seq from sqlite_sequence where name = 'outbox_message'), 0),
    coalesce((select max(seq) from outbox_message), 0)) as drawn,
  (select high from outbox_cursor) as high
