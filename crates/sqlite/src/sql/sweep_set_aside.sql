-- Messages from ?1 to ?2 that are held or wait for their time.
select seq from outbox_held where seq between ?1 and ?2
union all
select seq from outbox_scheduled where seq between ?1 and ?2
