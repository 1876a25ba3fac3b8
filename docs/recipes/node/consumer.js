// Ships each order once, however often its message comes, and acknowledges nothing that failed.
//
//     node consumer.js DATABASE_URL BOOTSTRAP_SERVERS TOPIC GROUP
"use strict";

const { CompressionCodecs, CompressionTypes, Kafka, logLevel } = require("kafkajs");
const lz4 = require("lz4js");
const { Pool } = require("pg");

const BACKOFF_MIN_MS = 100;
const BACKOFF_MAX_MS = 30_000;

// kafkajs brings gzip alone.
CompressionCodecs[CompressionTypes.LZ4] = () => ({
  compress: async (encoder) => Buffer.from(lz4.compress(encoder.buffer)),
  decompress: async (buffer) => Buffer.from(lz4.decompress(buffer)),
});

// The handler. Whatever it throws rolls everything back, and the message comes again.
async function ship(client, payload) {
  const placed = JSON.parse(payload);
  await client.query("insert into shipment values ($1, $2)", [placed.order, placed.amount_cents]);
}

async function handleOnce(pool, place, id, correlationId, payload) {
  const client = await pool.connect();
  let failure;
  try {
    await client.query("begin");
    const claim = await client.query(
      `select inbox.claim(consumer => 'shipping', id => $1, topic => $2, partition => $3, record_offset => $4,
                          correlation_id => $5) as fresh`,
      [id, place.topic, place.partition, place.offset, correlationId],
    );
    if (claim.rows[0].fresh) {
      await ship(client, payload);
    }
    await client.query("commit");
  } catch (error) {
    failure = error;
    throw error;
  } finally {
    // A connection that is released with an error is closed, and its transaction rolls back.
    client.release(failure);
  }
}

async function main() {
  const [databaseUrl, bootstrapServers, topic, groupId] = process.argv.slice(2);
  const pool = new Pool({ connectionString: databaseUrl });
  pool.on("error", (error) => console.error(`database: ${error.message}`));
  const kafka = new Kafka({ brokers: bootstrapServers.split(","), logLevel: logLevel.WARN });
  // A fetch that finds nothing waits this long, and a partition that is to go on waits with it (default: 5 s).
  const consumer = kafka.consumer({ groupId, maxWaitTimeInMs: 200 });
  await consumer.connect();
  await consumer.subscribe({ topics: [topic], fromBeginning: true });
  const attempts = new Map(); // by partition: how often its record failed
  await consumer.run({
    autoCommit: false,
    eachMessage: async ({ partition, message, pause }) => {
      const place = { topic, partition, offset: message.offset };
      // A header that occurs twice is an array: the relay's own comes first.
      const header = (name) => [message.headers[name]].flat()[0]?.toString() ?? null;
      try {
        await handleOnce(pool, place, header("id"), header("correlation-id"), message.value);
      } catch (error) {
        // Its partition waits here; the others go on.
        const attempt = (attempts.get(partition) ?? 0) + 1;
        attempts.set(partition, attempt);
        consumer.seek(place);
        setTimeout(pause(), Math.min(BACKOFF_MIN_MS * 2 ** (attempt - 1), BACKOFF_MAX_MS));
        console.error(
          `not handled: ${topic}/${partition}@${message.offset} id=${header("id")}` +
            ` correlation_id=${header("correlation-id")} attempt=${attempt}: ${error.message}`,
        );
        return;
      }
      attempts.delete(partition);
      await consumer.commitOffsets([{ topic, partition, offset: (BigInt(message.offset) + 1n).toString() }]);
    },
  });
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
