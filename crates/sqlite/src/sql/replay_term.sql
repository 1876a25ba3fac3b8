-- Whether the term is the present one. ?1 epoch, ?2 nonce
select exists (select 1 from outbox_cursor where epoch = ?1 and nonce = ?2)
