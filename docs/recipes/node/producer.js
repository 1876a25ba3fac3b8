// Takes orders, one a line: number, customer, amount in cents. Each is written with its intent in one transaction.
//
//     node producer.js DATABASE_URL TOPIC < orders
"use strict";

const readline = require("node:readline");
const { Client } = require("pg");

async function place(client, topic, requestId, order, customer, amountCents) {
  await client.query("begin");
  try {
    // Every intent of this transaction carries the id of the request.
    await client.query("select set_config('outbox.correlation_id', $1, true)", [requestId]);
    await client.query("insert into orders values ($1, $2, $3)", [order, customer, amountCents]);
    await client.query("select outbox.emit(topic => $1, key => $2, payload => $3::jsonb)", [
      topic,
      customer,
      JSON.stringify({ order, amount_cents: amountCents }),
    ]);
    await client.query("commit");
  } catch (error) {
    await client.query("rollback");
    throw error;
  }
}

async function main() {
  const [databaseUrl, topic] = process.argv.slice(2);
  const client = new Client(databaseUrl);
  await client.connect();
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const [order, customer, amount] = line.split(" ");
    await place(client, topic, `req-${order}`, Number(order), customer, amount ? Number(amount) : null);
  }
  await client.end();
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
