-- Replays rest: they were meant for another place. ?1 who
update outbox_replay
set state = 'paused', changed_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now'), changed_by = ?1
where state in ('running', 'paused', 'stopped') and state = 'running'
