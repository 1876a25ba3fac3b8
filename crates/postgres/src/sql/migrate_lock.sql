-- Waits until no other migrate of this schema runs. Held to the end of the transaction. 1868721513 is "obmi" in ASCII.
select pg_catalog.pg_advisory_xact_lock(1868721513, pg_catalog.hashtext('outbox'::name::text))
