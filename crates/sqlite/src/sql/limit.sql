-- How large may an intent be, in bytes? The trigger reads it from here too.
select max_message_bytes from outbox_setting
