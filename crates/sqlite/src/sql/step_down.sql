-- Gives the lead back. Without its nonce the term can do nothing any more.
-- ?1 nonce
update outbox_cursor set nonce = null, kept_at = null, lease_until = null where nonce = ?1
