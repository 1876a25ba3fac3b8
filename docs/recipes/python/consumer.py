"""Ships each order once, however often its message comes, and acknowledges nothing that failed.

    consumer.py DATABASE_URL BOOTSTRAP_SERVERS TOPIC GROUP
"""

import json
import sys
import time

import psycopg
from confluent_kafka import Consumer, TopicPartition

BACKOFF_MIN, BACKOFF_MAX = 0.1, 30.0


def ship(connection, payload):
    """The handler. Whatever it raises rolls everything back, and the message comes again."""
    placed = json.loads(payload)
    connection.execute("insert into shipment values (%s, %s)", [placed["order"], placed["amount_cents"]])


def handle_once(connection, record, headers):
    with connection.transaction():
        fresh = connection.execute(
            "select inbox.claim(consumer => 'shipping', id => %s::uuid, topic => %s, partition => %s,"
            " record_offset => %s, correlation_id => %s)",
            [headers.get("id"), record.topic(), record.partition(), record.offset(), headers.get("correlation-id")],
        ).fetchone()[0]
        if fresh:
            ship(connection, record.value())


def main():
    database_url, bootstrap_servers, topic, group = sys.argv[1:]
    consumer = Consumer({
        "bootstrap.servers": bootstrap_servers,
        "group.id": group,
        "enable.auto.commit": False,
        "auto.offset.reset": "earliest",
    })
    consumer.subscribe([topic])
    connection = psycopg.connect(database_url, autocommit=True)
    attempts, due = {}, {}  # by partition: how often its record failed, and when it is tried again
    while True:
        for partition in [partition for partition, at in due.items() if at <= time.monotonic()]:
            del due[partition]
            try:
                consumer.resume([TopicPartition(topic, partition)])
            except Exception:  # Another consumer of the group has the partition now.
                attempts.pop(partition, None)
        record = consumer.poll(0.1)
        if record is None:
            continue
        if record.error():
            print(record.error(), file=sys.stderr, flush=True)
            continue
        partition = record.partition()
        headers = {name: value.decode(errors="replace") for name, value in reversed(record.headers() or []) if value is not None}
        try:
            if connection.closed:
                connection = psycopg.connect(database_url, autocommit=True)
            handle_once(connection, record, headers)
        except Exception as error:
            # Its partition waits here; the others go on.
            attempts[partition] = attempts.get(partition, 0) + 1
            due[partition] = time.monotonic() + min(BACKOFF_MIN * 2 ** (attempts[partition] - 1), BACKOFF_MAX)
            here = TopicPartition(topic, partition, record.offset())
            consumer.pause([here])
            consumer.seek(here)
            print(
                f"not handled: {topic}/{partition}@{record.offset()} id={headers.get('id')}"
                f" correlation_id={headers.get('correlation-id')} attempt={attempts[partition]}: {error}",
                file=sys.stderr, flush=True,
            )
        else:
            attempts.pop(partition, None)
            consumer.commit(record, asynchronous=True)


main()
