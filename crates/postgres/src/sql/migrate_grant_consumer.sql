-- The consumer claims messages, counts further copies of them, and forgets old ones. It cannot make a claim into another one. It may read
-- what it handled, and a purge may lock a row because it may update a column of it.
grant usage on schema inbox to consumer_role;
grant select, insert, delete on inbox.handled to consumer_role;
grant update (duplicates, last_duplicate_at) on inbox.handled to consumer_role;
grant execute on function inbox.claim(text, uuid, text, integer, bigint, text), inbox.purge(interval, integer) to consumer_role;
