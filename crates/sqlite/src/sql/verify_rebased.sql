-- When was the outbox rebased last, and what time is it?
select max(at) as at, strftime('%Y-%m-%dT%H:%M:%fZ', 'now') as now from outbox_operation where kind = 'rebase'
