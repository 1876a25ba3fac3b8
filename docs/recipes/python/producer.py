"""Takes orders, one a line: number, customer, amount in cents. Each is written with its intent in one transaction.

    producer.py DATABASE_URL TOPIC < orders
"""

import json
import sys

import psycopg


def place(connection, topic, request_id, order, customer, amount_cents):
    with connection.transaction():
        # Every intent of this transaction carries the id of the request.
        connection.execute("select set_config('outbox.correlation_id', %s, true)", [request_id])
        connection.execute("insert into orders values (%s, %s, %s)", [order, customer, amount_cents])
        connection.execute(
            "select outbox.emit(topic => %s, key => %s, payload => %s::jsonb)",
            [topic, customer, json.dumps({"order": order, "amount_cents": amount_cents})],
        )


def main():
    database_url, topic = sys.argv[1:]
    with psycopg.connect(database_url, autocommit=True) as connection:
        for line in sys.stdin:
            order, customer, *amount = line.split()
            place(connection, topic, f"req-{order}", int(order), customer, int(amount[0]) if amount else None)


main()
