-- The tables of the shop and of its shipping department, as the recipes use them.
create table orders (id bigint primary key, customer text not null, amount_cents bigint);
create table shipment (order_id bigint not null, amount_cents bigint not null);
