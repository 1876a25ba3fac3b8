-- Puts a message that is due behind the earlier one of its key that blocks it: it goes when nothing blocks its key, which may be at once.
-- Without this, one whose own follower waits for something else would keep both for ever. ?1 seq
update outbox_held set state = 'behind', reason = 'behind', due_at = null
where seq = ?1 and state in ('retry', 'topic')
