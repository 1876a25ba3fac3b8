-- Counts a copy of a message that this consumer has handled. (the primary key)
update inbox_handled
set duplicates = duplicates + 1, last_duplicate_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now')
where consumer = ?1 and id = ?2
