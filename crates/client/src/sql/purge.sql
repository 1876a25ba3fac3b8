-- Forgets what was handled longer ago than $1 microseconds, at most $2 rows. (handled_claimed_at)
select inbox.purge(older_than => $1 * interval '1 microsecond', rows => $2)
