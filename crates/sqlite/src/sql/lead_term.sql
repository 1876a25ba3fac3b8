-- Keeps who leads, and from where. ?1 epoch, ?2 relay, ?3 led at, ?4 high
insert or replace into outbox_term (epoch, relay, led_at, high) values (?1, ?2, ?3, ?4)
