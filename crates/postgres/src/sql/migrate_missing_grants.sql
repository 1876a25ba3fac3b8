-- What can role $1 not do that its part ($2: writer, relay, reader; of an inbox: consumer) needs? One line of text each. GRANT by a role that may not
-- grant is a warning and no error, so this is asked after granting, and by the preflight.
with needs(part, privilege, relation, columns) as (values
  ('writer', 'insert', 'message', '{id,topic,key,payload,headers,partition,content_type,correlation_id,causation_id,traceparent,tracestate,deliver_after,idempotency_key}'::text[]),
  ('writer', 'select', 'message', '{id,seq,idempotency_key}'),
  ('relay', 'select', 'message', null),
  ('relay', 'delete', 'message', null),
  ('relay', 'select', 'envelope', null),
  ('relay', 'select', 'migration', null),
  ('relay', 'select', 'message_seq_seq', null),
  ('relay', 'select', 'cursor', null),
  ('relay', 'update', 'cursor', null),
  ('relay', 'select', 'receipt', null),
  ('relay', 'insert', 'receipt', null),
  ('relay', 'delete', 'receipt', null),
  ('relay', 'select', 'held', null),
  ('relay', 'insert', 'held', null),
  ('relay', 'update', 'held', null),
  ('relay', 'delete', 'held', null),
  ('relay', 'select', 'held_action', null),
  ('relay', 'insert', 'held_action', null),
  ('relay', 'select', 'scheduled', null),
  ('relay', 'insert', 'scheduled', null),
  ('relay', 'delete', 'scheduled', null),
  ('relay', 'select', 'cancelled', null),
  ('relay', 'insert', 'cancelled', null),
  ('relay', 'update', 'cancelled', null),
  ('relay', 'delete', 'cancelled', null),
  ('relay', 'select', 'held_edit', null),
  ('relay', 'insert', 'held_edit', null),
  ('relay', 'update', 'held_edit', null),
  ('relay', 'delete', 'held_edit', null),
  ('relay', 'select', 'operation', null),
  ('relay', 'insert', 'operation', null),
  ('relay', 'select', 'sweep', null),
  ('relay', 'update', 'sweep', null),
  ('relay', 'select', 'hold_history', null),
  ('relay', 'insert', 'hold_history', null),
  ('relay', 'delete', 'hold_history', null),
  ('relay', 'select', 'rewind', null),
  ('relay', 'insert', 'rewind', null),
  ('relay', 'delete', 'rewind', null),
  ('relay', 'select', 'term', null),
  ('relay', 'insert', 'term', null),
  ('relay', 'update', 'term', null),
  ('relay', 'delete', 'term', null),
  ('relay', 'select', 'replay', null),
  ('relay', 'select', 'operator_actions', null),
  ('relay', 'select', 'fingerprint', null),
  ('relay', 'insert', 'replay', null),
  ('relay', 'update', 'replay', null),
  ('reader', 'select', 'message', '{seq,xid,id,topic,partition,content_type,correlation_id,causation_id,traceparent,tracestate,created_at,deliver_after,idempotency_key}'),
  ('reader', 'select', 'envelope', null),
  ('reader', 'select', 'migration', null),
  ('reader', 'select', 'message_seq_seq', null),
  ('reader', 'select', 'cursor', null),
  ('reader', 'select', 'receipt', null),
  ('reader', 'select', 'held', null),
  ('reader', 'select', 'held_action', null),
  ('reader', 'select', 'scheduled', null),
  ('reader', 'select', 'cancelled', null),
  ('reader', 'select', 'operation', null),
  ('reader', 'select', 'sweep', null),
  ('reader', 'select', 'held_edit', '{seq,edited,topic,partition,edited_at}'),
  ('reader', 'select', 'hold_history', null),
  ('reader', 'select', 'rewind', null),
  ('reader', 'select', 'fingerprint', null),
  ('reader', 'select', 'term', null),
  ('reader', 'select', 'replay', '{replay,state,who,why,requested_at,seqs,correlation_id,topic,created_from,created_before,seq_first,seq_last,to_topic,rate,total,pos,published,skipped,taken_epoch,takes,stopped_seq,stopped_id,error,changed_at,changed_by}'),
  ('consumer', 'select', 'handled', null),
  ('consumer', 'insert', 'handled', null),
  ('consumer', 'update', 'handled', '{duplicates,last_duplicate_at}'),
  ('consumer', 'delete', 'handled', null))
select missing from (
  select 'usage on schema ' || n.nspname as missing
  from pg_catalog.pg_namespace n
  where n.nspname = 'outbox'::name and not pg_catalog.has_schema_privilege($1::name, n.oid, 'usage')
  union all
  select needs.privilege || ' on ' || c.relname
  from needs
  join pg_catalog.pg_namespace n on n.nspname = 'outbox'::name
  join pg_catalog.pg_class c on c.relnamespace = n.oid and c.relname = needs.relation
  where needs.part = $2 and needs.columns is null
    and not pg_catalog.has_table_privilege($1::name, c.oid, needs.privilege)
  union all
  select needs.privilege || ' (' || wanted.name || ') on ' || c.relname
  from needs
  join pg_catalog.pg_namespace n on n.nspname = 'outbox'::name
  join pg_catalog.pg_class c on c.relnamespace = n.oid and c.relname = needs.relation
  cross join lateral pg_catalog.unnest(needs.columns) as wanted(name)
  where needs.part = $2 and not pg_catalog.has_column_privilege($1::name, c.oid, wanted.name, needs.privilege)
  union all
  select 'execute on ' || p.oid::pg_catalog.regprocedure::text
  from pg_catalog.pg_proc p join pg_catalog.pg_namespace n on n.oid = p.pronamespace
  where n.nspname = 'outbox'::name and (p.proname in ('emit', 'cancel') and $2 = 'writer' or p.proname = 'canary' and $2 = 'relay' or p.proname in ('claim', 'purge') and $2 = 'consumer')
    and not pg_catalog.has_function_privilege($1::name, p.oid, 'execute')
) found order by missing
