-- Which indexes do the intents have? Among them the optional ones that trace uses.
select name from sqlite_schema where type = 'index' and tbl_name = 'outbox_message'
