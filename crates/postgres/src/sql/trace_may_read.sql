-- May this role read keys, and headers and payloads? Asked first, so that the answer names the grant that is missing.
select current_user::text as role,
  has_column_privilege('outbox.message'::regclass, 'key', 'select') as keys,
  has_column_privilege('outbox.message'::regclass, 'headers', 'select')
    and has_column_privilege('outbox.message'::regclass, 'payload', 'select') as payloads
