import static java.nio.charset.StandardCharsets.UTF_8;

import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.SQLException;
import java.time.Duration;
import java.time.Instant;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.consumer.OffsetAndMetadata;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;

/**
 * Ships each order once, however often its message comes, and acknowledges nothing that failed.
 *
 * <pre>java -cp 'jars/*' Consumer.java JDBC_URL BOOTSTRAP_SERVERS TOPIC GROUP</pre>
 */
public class Consumer {
    static final Duration BACKOFF_MIN = Duration.ofMillis(100);
    static final Duration BACKOFF_MAX = Duration.ofSeconds(30);

    /** A partition that waits at a record that failed. */
    record Stopped(int attempts, Instant due) {}

    final String databaseUrl;
    final KafkaConsumer<byte[], byte[]> consumer;
    final Map<TopicPartition, Stopped> stopped = new HashMap<>();
    Connection connection;

    Consumer(String databaseUrl, KafkaConsumer<byte[], byte[]> consumer) {
        this.databaseUrl = databaseUrl;
        this.consumer = consumer;
    }

    /** The handler. Whatever it throws rolls everything back, and the message comes again. */
    static void ship(Connection connection, byte[] payload) throws SQLException {
        var sql = "insert into shipment select (p->>'order')::bigint, (p->>'amount_cents')::bigint from (select ?::jsonb) as _(p)";
        try (var insert = connection.prepareStatement(sql)) {
            insert.setString(1, new String(payload, UTF_8));
            insert.execute();
        }
    }

    void handleOnce(ConsumerRecord<byte[], byte[]> record) throws SQLException {
        if (connection == null || connection.isClosed()) {
            connection = DriverManager.getConnection(databaseUrl);
            connection.setAutoCommit(false);
        }
        var sql = "select inbox.claim(consumer => 'shipping', id => ?::uuid, topic => ?, partition => ?, record_offset => ?,"
                + " correlation_id => ?)";
        try (var claim = connection.prepareStatement(sql)) {
            claim.setString(1, header(record, "id"));
            claim.setString(2, record.topic());
            claim.setInt(3, record.partition());
            claim.setLong(4, record.offset());
            claim.setString(5, header(record, "correlation-id"));
            var fresh = claim.executeQuery();
            fresh.next();
            if (fresh.getBoolean(1)) {
                ship(connection, record.value());
            }
            connection.commit();
        } catch (SQLException | RuntimeException e) {
            connection.rollback();
            throw e;
        }
    }

    /** The first one of that name: the relay's own comes before the intent's. */
    static String header(ConsumerRecord<byte[], byte[]> record, String name) {
        var found = record.headers().headers(name).iterator();
        return found.hasNext() ? new String(found.next().value(), UTF_8) : null;
    }

    /** Whether it was handled. If not, its partition waits here; the others go on. */
    boolean handle(TopicPartition partition, ConsumerRecord<byte[], byte[]> record) {
        try {
            handleOnce(record);
            stopped.remove(partition);
            return true;
        } catch (Exception e) {
            var attempts = stopped.containsKey(partition) ? stopped.get(partition).attempts() + 1 : 1;
            var backoff = BACKOFF_MIN.multipliedBy(1L << Math.min(attempts - 1, 20));
            backoff = backoff.compareTo(BACKOFF_MAX) < 0 ? backoff : BACKOFF_MAX;
            stopped.put(partition, new Stopped(attempts, Instant.now().plus(backoff)));
            consumer.pause(List.of(partition));
            consumer.seek(partition, record.offset());
            System.err.printf("not handled: %s/%d@%d id=%s correlation_id=%s attempt=%d: %s%n", record.topic(),
                    record.partition(), record.offset(), header(record, "id"), header(record, "correlation-id"), attempts,
                    e.getMessage());
            return false;
        }
    }

    void run() {
        while (true) {
            stopped.keySet().retainAll(consumer.assignment());
            consumer.resume(stopped.entrySet().stream().filter(it -> !it.getValue().due().isAfter(Instant.now()))
                    .map(Map.Entry::getKey).toList());
            var records = consumer.poll(Duration.ofMillis(100));
            for (var partition : records.partitions()) {
                for (var record : records.records(partition)) {
                    if (!handle(partition, record)) {
                        break;
                    }
                    consumer.commitAsync(Map.of(partition, new OffsetAndMetadata(record.offset() + 1)), null);
                }
            }
        }
    }

    public static void main(String[] arguments) {
        var properties = new Properties();
        properties.put("bootstrap.servers", arguments[1]);
        properties.put("group.id", arguments[3]);
        properties.put("enable.auto.commit", "false");
        properties.put("auto.offset.reset", "earliest");
        try (var consumer = new KafkaConsumer<>(properties, new ByteArrayDeserializer(), new ByteArrayDeserializer())) {
            consumer.subscribe(List.of(arguments[2]));
            new Consumer(arguments[0], consumer).run();
        }
    }
}
