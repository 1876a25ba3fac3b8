-- How large may an intent be, in bytes? Any role with a part of the outbox may ask.
select outbox.max_message_bytes() as max_message_bytes
