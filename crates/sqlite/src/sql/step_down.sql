-- Gives the lead back: the term ended in order. Without its nonce it can do nothing any more.
-- ?1 nonce
update outbox_cursor set nonce = null, terms_unsettled = 0, kept_at = null, lease_until = null where nonce = ?1
