-- The cursor in the words of this cluster: $1 its snapshot, in which this transaction is not finished; $2 the number after this
-- transaction's; $3 a nonce, so that no leader of before settles any more. What it says of the messages above high stays. The
-- sweep begins again, and replays rest: they were meant for another place. $4 who, $5 why, $6 details: the audit, in the same statement.
with moved as (
  update outbox.cursor c
  set epoch = c.epoch + 1,
    nonce = $3,
    seen = $1::text::pg_snapshot,
    pos = null,
    until = null,
    xid_bound = $2::text::xid8,
    system_identifier = (select s.system_identifier from pg_catalog.pg_control_system() s),
    kafka_cluster = null,
    terms_unsettled = 0,
    trial_seq = null,
    trials = 0
  where c.singleton
  returning c.high, c.seen::text as seen
), swept as (
  update outbox.sweep s set swept_to = 0 where s.singleton
), replays as (
  update outbox.replay r
  set state = 'paused', changed_at = clock_timestamp(), changed_by = $4
  where r.state in ('running', 'paused', 'stopped') and r.state = 'running'
), audited as (
  insert into outbox.operation (kind, who, why, details)
  select 'rebase', $4, $5, $6::text::jsonb || jsonb_build_object('cursor_after', m.high || '@' || m.seen)
  from moved m
  returning operation
)
select m.high, m.seen, a.operation from moved m cross join audited a
