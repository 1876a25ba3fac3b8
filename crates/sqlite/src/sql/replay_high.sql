-- The place up to which the cursor has dealt with everything.
select high from outbox_cursor
