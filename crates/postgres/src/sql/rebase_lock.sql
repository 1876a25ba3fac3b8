-- Nobody writes an intent until this transaction ends, and nobody is in the middle of writing one: whoever has written and not
-- committed is waited for. Reading goes on.
lock table outbox.message in share row exclusive mode
