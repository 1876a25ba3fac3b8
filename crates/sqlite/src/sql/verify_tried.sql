-- Which of these messages (?1, a JSON array) were held after an attempt that failed?
select h.seq from outbox_hold_history as h join json_each(?1) as wanted on h.seq = wanted.value where h.attempts > 0
union
select h.seq from outbox_held as h join json_each(?1) as wanted on h.seq = wanted.value where h.attempts > 0
