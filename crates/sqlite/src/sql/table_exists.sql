-- Is there a table of that name?
select count(*) as tables from sqlite_schema where type = 'table' and name = ?1
