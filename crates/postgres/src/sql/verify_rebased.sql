-- When was the outbox rebased last, and what time is it? The audit of operations is small.
select max(o.at) as at, clock_timestamp() as now from outbox.operation o where o.kind = 'rebase'
