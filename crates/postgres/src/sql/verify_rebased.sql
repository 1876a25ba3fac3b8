-- When was the outbox rebased last? The audit of operations is small.
select max(o.at) as at from outbox.operation o where o.kind = 'rebase'
