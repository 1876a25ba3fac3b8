-- Which intent has the idempotency key $1? Its unique index serves it. At most $2.
select to_jsonb(e) as intent
from outbox.envelope e
where e.idempotency_key = $1
order by e.seq
limit $2
