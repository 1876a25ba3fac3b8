-- When was the outbox rebased last?
select max(at) as at from outbox_operation where kind = 'rebase'
