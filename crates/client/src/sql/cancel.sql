-- Takes a scheduled intent back, if its time has not come.
select outbox.cancel(id => $1, why => $2)
