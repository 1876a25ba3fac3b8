-- Which of these roles do not exist?
select role from pg_catalog.unnest($1::text[]) as wanted(role)
where not exists (select from pg_catalog.pg_roles r where r.rolname = wanted.role)
order by role
