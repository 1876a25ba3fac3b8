-- Which triggers guard the intents?
select name from sqlite_schema where type = 'trigger' and tbl_name = 'outbox_message' order by name
