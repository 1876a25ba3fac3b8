-- Which intent has the idempotency key ?1? Its unique index serves it. At most ?2.
select m.seq from outbox_message as m where m.idempotency_key = ?1 order by m.seq limit ?2
