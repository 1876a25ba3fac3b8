import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.SQLException;
import java.sql.Types;

/**
 * Takes orders, one a line: number, customer, amount in cents. Each is written with its intent in one transaction.
 *
 * <pre>java -cp 'jars/*' Producer.java JDBC_URL TOPIC &lt; orders</pre>
 */
public class Producer {
    static void place(Connection connection, String topic, String requestId, long order, String customer, Long amountCents)
            throws SQLException {
        try (var correlation = connection.prepareStatement("select set_config('outbox.correlation_id', ?, true)");
                var insert = connection.prepareStatement("insert into orders values (?, ?, ?)");
                var emit = connection.prepareStatement("select outbox.emit(topic => ?, key => ?, payload => ?::jsonb)")) {
            // Every intent of this transaction carries the id of the request.
            correlation.setString(1, requestId);
            correlation.execute();
            insert.setLong(1, order);
            insert.setString(2, customer);
            insert.setObject(3, amountCents, Types.BIGINT);
            insert.execute();
            emit.setString(1, topic);
            emit.setString(2, customer);
            emit.setString(3, "{\"order\": %d, \"amount_cents\": %d}".formatted(order, amountCents));
            emit.execute();
            connection.commit();
        } catch (SQLException e) {
            connection.rollback();
            throw e;
        }
    }

    public static void main(String[] arguments) throws Exception {
        var lines = new BufferedReader(new InputStreamReader(System.in));
        try (var connection = DriverManager.getConnection(arguments[0])) {
            connection.setAutoCommit(false);
            for (var line = lines.readLine(); line != null; line = lines.readLine()) {
                var words = line.split(" ");
                var amountCents = words.length > 2 ? Long.valueOf(words[2]) : null;
                place(connection, arguments[1], "req-" + words[0], Long.parseLong(words[0]), words[1], amountCents);
            }
        }
    }
}
