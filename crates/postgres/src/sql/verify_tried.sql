-- Which of these messages ($1) were held after an attempt that failed? Indexes: hold_history_pkey, held_pkey.
select h.seq from outbox.hold_history h where h.seq = any ($1::bigint[]) and h.attempts > 0
union
select h.seq from outbox.held h where h.seq = any ($1::bigint[]) and h.attempts > 0
