-- Which intent has this idempotency key? (its partial unique index)
select id from outbox_message where idempotency_key = ?1
